//! What every device must do, tested through the public API alone.
//!
//! `OVERBANK_CONFORMANCE_DEVICE` names the device (default: soft), `OVERBANK_CONFORMANCE_ADDRESS` its local address
//! (default: 127.0.0.1). A device that lacks something fails; nothing is skipped.
#![allow(missing_docs)]

#[path = "../shared/end.rs"]
mod end;
mod ends;
mod lanes;
mod life;
mod many;
mod rights;
mod transfers;
