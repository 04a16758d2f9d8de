//! Packets that get lost, doubled or late on the way: everything still arrives, and once.

use std::process::Command;

use crate::ends::*;
use crate::transfers::{long_requests, pipeline};

/// What netem does to packets of each of the two interfaces while it lives.
pub(crate) struct Netem {
    interfaces: Vec<(Option<String>, String)>,
}

impl Netem {
    /// In both directions, or only on what the soft device sends.
    pub(crate) fn begin(scene: &Scene, words: &[&str], both: bool) -> Self {
        let ndev = format!("/sys/class/infiniband/{}/ports/1/gid_attrs/ndevs/0", scene.real.name());
        let near = std::fs::read_to_string(ndev).expect("the real device has a network interface").trim().to_owned();
        let far = inside(&namespace_handle().expect("it was there"), || {
            let all = nix::ifaddrs::getifaddrs().unwrap();
            let names = all.map(|interface| interface.interface_name).filter(|name| name != "lo");
            names.min().expect("the namespace has an interface")
        });
        let mut interfaces = vec![(Some(namespace()), far)];
        interfaces.extend(both.then_some((None, near)));
        let netem = Self { interfaces };
        assert!(netem.tc("add", &[&["netem"], words].concat()), "tc could not add netem");
        netem
    }

    fn tc(&self, verb: &str, rest: &[&str]) -> bool {
        self.interfaces.iter().all(|(namespace, interface)| {
            let inside: &[&str] = match namespace {
                Some(name) => &["ip", "netns", "exec", name],
                None => &["env"],
            };
            let words = [inside, &["tc", "qdisc", verb, "dev", interface, "root"], rest].concat();
            Command::new(words[0]).args(&words[1..]).status().is_ok_and(|status| status.success())
        })
    }
}

impl Drop for Netem {
    fn drop(&mut self) {
        self.tc("del", &[]);
    }
}

fn through_loss(asker: Asker) {
    let Some(scene) = scene() else { return };
    let Some(words) = setting("NETEM") else {
        return println!("SKIPPED: OVERBANK_INTEROP_NETEM says nothing of what befalls packets");
    };
    let _netem = Netem::begin(&scene, &words.split_whitespace().collect::<Vec<_>>(), true);
    pipeline(&scene, asker, 20);
    long_requests(&scene, asker, (8, 100_001));
    scene.report(&format!("{words}; full queues, then 8 WRITEs and 8 READs of 100001 bytes, {asker:?} asks"));
}

#[test]
fn soft_asks() {
    through_loss(Asker::Soft);
}

#[test]
fn real_asks() {
    through_loss(Asker::Real);
}
