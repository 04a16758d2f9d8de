//! The data path against a lender in the same process, over two soft devices and their sockets. The lender is hostile
//! where a test says so: it has the memory.
#![allow(missing_docs)]

mod allocations;
mod contents;
mod hostile;
mod lender;
mod recovery;
mod several;
mod transfers;
