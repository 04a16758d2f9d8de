//! Packets that get lost, doubled, damaged or late on the way: everything still arrives, and once.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use overbank_verbs::Op;

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
        let far = far_interface();
        let mut interfaces = vec![(Some(namespace()), far)];
        keep_neighbours(scene, &near, &interfaces[0].1);
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

/// The two find each other's Ethernet address and keep it: what asks for it can be lost too, and is repeated only after a
/// second.
fn keep_neighbours(scene: &Scene, near: &str, far: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (a, b) = scene.pair(Asker::Soft, REMOTE, PATIENT);
        let (from, to) = (memory(1, 1), memory(1, 2));
        let (mr, remote) = (a.register(&from, ALL), b.register(&to, ALL));
        a.run_all(&[request((0, Op::Write), &mr, 0..1, &remote, 0)]);
        let address = |end: &End| end.qp.endpoint().socket_addr().ip().to_canonical().to_string();
        let mut places = vec![(vec![], address(&a), near)];
        // A port of DPDK's keeps its own, and asks again within milliseconds.
        if setting("SOFT").is_none() {
            places.push((vec!["-n".into(), namespace()], address(&b), far));
        }
        for (place, peer, interface) in places {
            let words = ["neigh", "change", &peer, "dev", interface, "nud", "permanent"];
            let status = Command::new("ip").args(place).args(words).status();
            assert!(status.is_ok_and(|status| status.success()), "no neighbour {peer} on {interface}");
        }
    });
}

/// Cuts the wire when it is told to: a program that is started then would come late.
pub(crate) struct Cut(Child);

impl Cut {
    pub(crate) fn ready() -> Self {
        let mut tc = Command::new("ip");
        tc.args(["netns", "exec", &namespace(), "tc", "-batch", "-"]).stdin(Stdio::piped());
        Self(tc.spawn().expect("tc starts"))
    }

    /// Nothing that the soft device sends arrives, while the result lives.
    pub(crate) fn now(mut self) -> Netem {
        let far = far_interface();
        let mut stdin = self.0.stdin.take().expect("it has a pipe");
        writeln!(stdin, "qdisc add dev {far} root netem loss 100%").unwrap();
        drop(stdin);
        assert!(self.0.wait().unwrap().success(), "tc could not add netem");
        Netem { interfaces: vec![(Some(namespace()), far)] }
    }
}

fn far_interface() -> String {
    inside(&namespace_handle().expect("it was there"), || {
        let all = nix::ifaddrs::getifaddrs().unwrap();
        let names = all.map(|interface| interface.interface_name).filter(|name| name != "lo");
        names.min().expect("the namespace has an interface")
    })
}

impl Drop for Netem {
    fn drop(&mut self) {
        self.tc("del", &[]);
    }
}

/// Full queues, long requests, and both on several queue pairs at once.
fn through(asker: Asker, words: &str, longest: usize) {
    let Some(scene) = scene() else { return };
    if setting("NETEM").is_none() {
        return println!("SKIPPED: OVERBANK_INTEROP_NETEM does not say that packets can be lost");
    }
    let netem = Netem::begin(&scene, &words.split_whitespace().collect::<Vec<_>>(), true);
    pipeline(&scene, asker, 5);
    long_requests(&scene, asker, (4, longest));
    std::thread::scope(|threads| {
        for _ in 0..3 {
            let scene = &*scene;
            threads.spawn(move || pipeline(scene, asker, 1));
        }
        long_requests(&scene, asker, (2, 100_001));
    });
    drop(netem);
    scene.report(&format!("{words}: full queues, long requests up to {longest} bytes, {asker:?} asks"));
}

const LONGEST: usize = 8 << 20;
/// After a loss rxe waits for its timeout, and asks for the whole rest of a READ again.
const LONGEST_OF_REAL: usize = 2 << 20;

/// Most READ requests have several gaps, and answers to what is asked for again get lost too: rxe answers for no gap below
/// one that it was asked for again.
#[test]
fn soft_reads_with_many_gaps() {
    let Some(scene) = scene() else { return };
    if setting("NETEM").is_none() {
        return println!("SKIPPED: OVERBANK_INTEROP_NETEM does not say that packets can be lost");
    }
    let netem = Netem::begin(&scene, &["loss", "15%"], true);
    // On a fresh connection each, which asks for many packets at once until it has learnt of the loss.
    for _ in 0..20 {
        long_requests(&scene, Asker::Soft, (1, 40 * scene.mtu()));
    }
    drop(netem);
    scene.report("loss 15%: 20 times a WRITE and a READ of 40 packets, Soft asks");
}

macro_rules! weather {
    ($($(#[$of_both:meta])* $name:ident: $words:expr, $longest:expr;)*) => {$(
        mod $name {
            #[test]
            $(#[$of_both])*
            fn soft_asks() {
                super::through(super::Asker::Soft, $words, $longest);
            }

            #[test]
            $(#[$of_both])*
            fn real_asks() {
                super::through(super::Asker::Real, $words, usize::min($longest, super::LONGEST_OF_REAL));
            }
        }
    )*};
}

// In the words of tc-netem(8), for each direction.
weather! {
    lost_1_of_1000: "loss 0.1%", 1_000_001;
    lost_1_of_100: "loss 1%", 300_001;
    lost_5_of_100: "loss 5%", 100_001;
    reordered: "delay 2ms reorder 95%", 300_001;
    doubled: "duplicate 10%", 300_001;
    corrupt: "corrupt 1%", 300_001;
    #[ignore = "requests of megabytes through loss take minutes"]
    long_lost_1_of_1000: "loss 0.1%", super::LONGEST;
    #[ignore = "requests of megabytes through loss take minutes"]
    long_lost_1_of_100: "loss 1%", super::LONGEST;
    #[ignore = "requests of megabytes through loss take minutes"]
    long_doubled: "duplicate 10%", super::LONGEST;
    #[ignore = "requests of megabytes through loss take minutes"]
    long_corrupt: "corrupt 0.5%", super::LONGEST;
}

/// What the setting says.
mod as_told {
    use super::*;

    fn told(asker: Asker) {
        match setting("NETEM") {
            Some(words) => through(asker, &words, 100_001),
            None => println!("SKIPPED: OVERBANK_INTEROP_NETEM says nothing of what befalls packets"),
        }
    }

    #[test]
    fn soft_asks() {
        told(Asker::Soft);
    }

    #[test]
    fn real_asks() {
        told(Asker::Real);
    }
}
