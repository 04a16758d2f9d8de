//! An eye on the device: says when its port goes down and comes back, and ends when the device has failed.

use std::time::Duration;

use overbank_verbs::Health;
use tokio::time::{MissedTickBehavior, interval};

/// From one look to the next.
pub const LOOK: Duration = Duration::from_secs(1);

/// Looks at a device's health every so often, and returns when it has failed: nothing but opening it again mends that.
pub async fn until_failed(device: &str, every: Duration, health: impl Fn() -> Health) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Health::Good;
    loop {
        ticks.tick().await;
        let now = health();
        match now {
            Health::Good if before != now => tracing::info!(device, "the device's port is up again"),
            Health::PortDown if before != now => tracing::warn!(
                device,
                "the device's port is down: nobody reaches the pool. Bring its network interface up (`rdma link` names \
                 it: ip link set INTERFACE up). Leases are kept, and end on time"
            ),
            Health::Good | Health::PortDown => {}
            Health::Fatal => return,
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn it_goes_on_while_the_port_is_down_and_ends_when_the_device_has_failed() {
        let looks = AtomicU32::new(0);
        let health = || match looks.fetch_add(1, Ordering::Relaxed) {
            0..10 => Health::Good,
            10..20 => Health::PortDown,
            20..30 => Health::Good,
            _ => Health::Fatal,
        };
        until_failed("test", Duration::from_millis(1), health).await;
        assert!(looks.into_inner() >= 31);
    }
}
