//! Regions over a store in this process: every byte that a program leaves in one is there when it comes back.

mod bytes;
mod ends;
mod oracle;
mod system;
mod threads;
mod vault;
