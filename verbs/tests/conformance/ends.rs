//! Two devices, a queue pair on each, and memory behind them.

use std::time::Duration;

use overbank_verbs::{Access, Device, DeviceOptions, Retry};

pub(crate) use crate::end::*;

pub(crate) const HASTY: Retry = Retry { timeout: Duration::from_millis(20), count: 3 };
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The device under test: OVERBANK_CONFORMANCE_DEVICE, or the soft one.
fn name() -> String {
    std::env::var("OVERBANK_CONFORMANCE_DEVICE").unwrap_or_else(|_| "soft".to_owned())
}

/// The side that asks.
pub(crate) fn open() -> Device {
    open_named(&name())
}

/// The side that answers: OVERBANK_CONFORMANCE_PEER where two devices are wired to each other, else the same device.
pub(crate) fn open_peer() -> Device {
    open_named(&std::env::var("OVERBANK_CONFORMANCE_PEER").unwrap_or_else(|_| name()))
}

fn open_named(name: &str) -> Device {
    let address = std::env::var("OVERBANK_CONFORMANCE_ADDRESS").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let mut options = DeviceOptions::new(address.parse().expect("an IP address"));
    options.spin = Duration::from_micros(20);
    Device::open(name, &options).expect("the device opens")
}

/// Whether the device under test is a real one, which is known to differ in this. docs/conformance.md says why, and what
/// that means.
pub(crate) fn differs(what: &str) -> bool {
    let real = name() != "soft" && !name().starts_with("dpdk:");
    if real {
        println!("DIFFERS: {what}");
    }
    real
}

/// `a` may do everything at `b`, and `b` nothing at `a`.
pub(crate) fn pair() -> (End, End) {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    connect(&a, Access::empty(), &b, REMOTE, PATIENT);
    (a, b)
}
