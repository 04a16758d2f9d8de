//! A port that goes down, and comes up again.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Config, ErrorKind, LeaseRequest};

use crate::process::eventually;
use crate::stack::{Stack, device, noise};

/// The network interface under the device, where it is one that carries nothing else and may be taken down.
fn dummy() -> Result<String, String> {
    let name = device();
    if name == "soft" {
        return Err("needs a real device: OVERBANK_TEST_DEVICE names one; the soft one has no port".to_owned());
    }
    let path = format!("/sys/class/infiniband/{name}/ports/1/gid_attrs/ndevs/0");
    let interface = fs::read_to_string(path).map_err(|error| format!("needs an interface below {name}: {error}"))?;
    let interface = interface.trim().to_owned();
    let shown = Command::new("ip").args(["-d", "link", "show", "dev", &interface]).output();
    let shown = shown.map_err(|error| format!("needs ip (Debian: apt-get install iproute2): {error}"))?;
    let words = String::from_utf8_lossy(&shown.stdout).into_owned();
    if !words.split_whitespace().any(|word| word == "dummy") {
        return Err(format!("needs a device on an interface that may be taken down, of kind dummy; not {interface}"));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root, to take an interface down".to_owned());
    }
    Ok(interface)
}

fn set(interface: &str, state: &str) {
    let status = Command::new("ip").args(["link", "set", "dev", interface, state]).status().expect("ip runs");
    assert!(status.success(), "{interface} did not go {state}");
}

/// Puts the interface up again, whatever happens.
struct Up<'a>(&'a str);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "set", "dev", self.0, "up"]).status();
    }
}

#[test]
fn a_port_that_goes_down_is_named_on_both_sides_and_all_goes_on_when_it_is_up() {
    let interface = match dummy() {
        Ok(interface) => interface,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let config =
        Config::new(&stack.address, &user.home).expect("an address").with_leases(user.runtime.join("overbank"));
    let client = Client::connect(&config).expect("connected");
    let mut lease = client.lease(&LeaseRequest::new(1 << 20, Duration::from_secs(600))).expect("room");
    let within = Duration::from_secs(6);
    lease.attach(&AttachOptions { device: device(), deadline: within, ..AttachOptions::default() }).expect("attached");
    let bytes = noise(100_000, 1);
    lease.write(0, &bytes).expect("written");
    let other = user.lease("64KiB", "10m");
    user.put(&other, b"hello").expect(0);
    let said = |words: &str| stack.provider.as_ref().expect("it runs").log().matches(words).count();
    assert_eq!(said("port is down"), 0);

    let _up = Up(&interface);
    set(&interface, "down");
    let down = Instant::now();
    eventually("the provider says so", Duration::from_secs(4), || said("port is down") > 0);
    let noticed = down.elapsed();
    let mut buffer = vec![1; bytes.len()];
    for _ in 0..2 {
        let started = Instant::now();
        let error = lease.read(0, &mut buffer).expect_err("nothing goes");
        assert!(started.elapsed() < within + Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.to_string().contains(&device()) && error.to_string().contains("port is down"), "{error}");
        assert!(buffer.iter().all(|&byte| byte == 0));
    }
    let error = lease.write(0, &noise(100_000, 2)).expect_err("nothing goes");
    assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    // A command that begins now finds no port to open.
    user.try_get(&other).expect(13).saying("port is down");
    user.put(&other, b"x").expect(13).saying(&format!("ip link set {interface} up"));

    set(&interface, "up");
    eventually("the provider says so", Duration::from_secs(4), || said("port is up again") == 1);
    assert_eq!(said("nobody reaches the pool"), 1, "said once");
    let started = Instant::now();
    // What was written last while it was down is not known to have arrived; it is written again first.
    lease.read(0, &mut buffer).expect("attached anew and read");
    let again = started.elapsed();
    assert!(buffer == bytes || buffer == noise(100_000, 2), "one or the other");
    lease.write(0, &bytes).expect("written");
    lease.read(0, &mut buffer).expect("read");
    assert!(buffer == bytes);
    assert_eq!(user.get(&other, 5), b"hello");
    println!("{}: noticed after {noticed:?}, read again {again:?} after it was up", device());
}
