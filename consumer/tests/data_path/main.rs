//! The data path against a lender in the same process, over two devices and what lies between them. The lender is
//! hostile where a test says so: it has the memory. OVERBANK_TEST_DEVICE names the device, the soft one by default.
#![allow(missing_docs)]

mod ahead;
mod allocations;
mod contents;
mod forged;
mod hostile;
mod lender;
mod reads;
mod recovery;
mod several;
mod transfers;
