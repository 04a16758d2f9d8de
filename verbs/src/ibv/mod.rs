//! The device `ibv`: InfiniBand and RoCE adapters and the kernel's soft-RoCE, through libibverbs.
//!
//! `sys` alone calls the C library and owns its objects; `gid` chooses an address without calling anything; the other
//! files say what the objects are for. libibverbs is opened when a device is asked for, so a program that was built
//! with this feature starts without it.

pub(crate) mod cq;
pub(crate) mod device;
mod gid;
pub(crate) mod mr;
pub(crate) mod pd;
pub(crate) mod qp;
#[allow(unsafe_code, reason = "the C library's objects are raw pointers; each block says why it is sound")]
mod sys;
