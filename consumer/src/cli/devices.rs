//! `devices`: the RDMA devices of this machine, and whether each can be used.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use overbank_verbs::{Device, DeviceOptions, FoundDevice, FoundDevices, Mtu};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{Output, printable};
use super::some_time;

/// Show the RDMA devices of this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  overbank devices                        every device, its addresses, and what mends one that cannot be used
  overbank devices --address 10.0.0.7     which one --device auto takes on the network of that address
  overbank devices --check rxe0           write and read through a device, and see that it protects memory")]
pub(crate) struct Devices {
    /// Our address as others are to see it: a device that has it is preferred
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Test this device through itself: auto, soft, or the name of an RDMA device
    #[arg(long, value_name = "DEVICE")]
    check: Option<String>,
    /// How long each step of the test may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = some_time, requires = "check")]
    deadline: Duration,
}

impl Devices {
    pub(crate) fn run(self, output: Output) -> Result<(), Failure> {
        let options = DeviceOptions::new(self.address);
        match self.check {
            None => {
                let found = Device::find(&options);
                output.answer(&describe(&found), &found_json(&found))
            }
            Some(name) => check(&name, &options, self.deadline, output),
        }
    }
}

fn check(name: &str, options: &DeviceOptions, deadline: Duration, output: Output) -> Result<(), Failure> {
    let device = Device::open(name, options)?;
    output.notice(&device.describe());
    let seen = device
        .self_test(deadline)
        .map_err(|error| Failure::Device { name: device.name().to_owned(), source: error })?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let text = format!(
        "{} works: {} bytes written in {:.0} µs and read back in {:.0} µs; memory that was taken back is out of reach",
        device.name(),
        seen.bytes,
        micros(seen.write),
        micros(seen.read)
    );
    let json = json!({
        "device": device.name(),
        "description": device.describe(),
        "bytes": seen.bytes,
        "write_us": micros(seen.write),
        "read_us": micros(seen.read),
    });
    output.answer(&text, &json)
}

fn describe(found: &FoundDevices) -> String {
    let mut lines: Vec<String> = found.devices.iter().flat_map(device_lines).collect();
    if let Some(reason) = &found.none_real {
        lines.push(format!("no real RDMA device: {reason}"));
    }
    let (index, why) = &found.auto;
    let name = found.devices.get(*index).map_or("nothing", |device| &device.name);
    lines.push(format!("--device auto takes {}: {}", printable(name), why));
    lines.join("\n")
}

fn device_lines(device: &FoundDevice) -> Vec<String> {
    let mtu = device.mtu.map_or(String::new(), |mtu| format!(", path MTU up to {}", mtu.bytes()));
    let mut lines = vec![format!("{}: {}, {}{mtu}", printable(&device.name), device.state, device.link)];
    match &device.usable {
        Ok(gid) => lines.push(format!("    can be used, with {gid}")),
        Err(reason) => lines.push(format!("    cannot be used: {reason}")),
    }
    if device.gids.len() > 1 || device.usable.is_err() {
        lines.extend(device.gids.iter().map(|gid| format!("    address {gid}")));
    }
    if let Some(limits) = &device.limits {
        lines.push(format!(
            "    at most {} queue pairs, {} requests and {} READs under way on each; {} regions of {}; {} domains",
            limits.queue_pairs,
            limits.send_queue,
            limits.outstanding_reads,
            limits.regions,
            if limits.region_bytes >= 1 << 60 {
                "any size".to_owned()
            } else {
                overbank::Size(limits.region_bytes).to_string()
            },
            limits.domains,
        ));
    }
    lines
}

fn found_json(found: &FoundDevices) -> Value {
    let (index, why) = &found.auto;
    json!({
        "devices": found.devices.iter().map(device_json).collect::<Vec<_>>(),
        "none_real": found.none_real,
        "auto": { "device": found.devices.get(*index).map(|device| &device.name), "why": why },
    })
}

fn device_json(device: &FoundDevice) -> Value {
    let gids = device.gids.iter().map(|gid| {
        json!({
            "index": gid.index,
            "address": gid.address().to_string(),
            "kind": gid.kind.to_string(),
            "link_local": gid.is_link_local(),
        })
    });
    json!({
        "name": device.name,
        "kind": match device.soft {
            true if device.name.starts_with("dpdk:") => "dpdk",
            true => "soft",
            false => "ibv",
        },
        "state": device.state,
        "link": device.link,
        "mtu": device.mtu.map(Mtu::bytes),
        "gids": gids.collect::<Vec<_>>(),
        "limits": device.limits.map(|limits| json!({
            "queue_pairs": limits.queue_pairs,
            "send_queue": limits.send_queue,
            "completions": limits.completions,
            "regions": limits.regions,
            "region_bytes": limits.region_bytes,
            "domains": limits.domains,
            "outstanding_reads": limits.outstanding_reads,
        })),
        "usable": device.usable.is_ok(),
        "address": device.usable.as_ref().ok().map(|gid| gid.address().to_string()),
        "reason": device.usable.as_ref().err(),
    })
}
