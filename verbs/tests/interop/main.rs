//! The soft device against a real one, over a wire: READ and WRITE, with each of the two as the one that asks.
//!
//! `OVERBANK_INTEROP_DEVICE` names the real device (rxe0). The soft one is opened in the network namespace
//! `OVERBANK_INTEROP_NAMESPACE` (default: far), at the address `OVERBANK_INTEROP_ADDRESS` (default: 10.9.0.2), port 4791,
//! with the path MTU `OVERBANK_INTEROP_MTU` (default: what the interface carries). Without the device's name or without
//! the namespace every case says that it is skipped. A virtual machine has both:
//!
//! ```text
//! cargo test -p overbank-verbs --test interop --no-run     # prints the program's path
//! OVERBANK_INTEROP_DEVICE=rxe0 scripts/rxe-vm --net far -c 2 -- PROGRAM --nocapture              # path MTU 4096
//! OVERBANK_INTEROP_DEVICE=rxe0 scripts/rxe-vm --net far -c 2 --mtu 1500 -- PROGRAM --nocapture   # path MTU 1024
//! ```
//!
//! `OVERBANK_INTEROP_NETEM='loss 2%'` with `--module sch_netem` is what befalls packets in both directions in the cases of
//! `loss`, in the words of tc-netem(8). `OVERBANK_INTEROP_CAPTURE=FILE` is where `capture` writes the real device's
//! packets; the test vectors in `src/soft/vectors` say how they were made.
#![allow(missing_docs)]

mod capture;
#[path = "../shared/end.rs"]
mod end;
mod ends;
mod loss;
mod middle;
mod refusals;
mod speed;
mod transfers;
