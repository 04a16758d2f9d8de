//! A tenant that brings a program of its own, written with another library, and knows another tenant's live key and
//! address. Only a real device speaks to such a program.

mod scene;

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv6Addr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Attach, Call, Reply};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::Deadline;
use overbank_fabric::token::{Rights, Scope, Token};
use overbank_verbs::{Endpoint, WcStatus};
use scene::*;
use serde_json::{Value, json};

/// Debian's own Python: that one has Debian's pyverbs.
const PYTHON: &str = "/usr/bin/python3";

struct Stranger {
    identity: Identity,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Where its queue pair is, but for number and PSN.
    here: Endpoint,
    /// What its last attach was answered.
    answer: Option<AttachAnswer>,
}

impl Stranger {
    /// `here`: an endpoint of the device that it is to use.
    fn start(here: Endpoint) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stranger.py");
        let mut child = Command::new(PYTHON)
            .args([script, &device_name(), &here.socket_addr().ip().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let identity = Identity::generate();
        Self { identity, child, stdin, stdout: BufReader::new(stdout), here, answer: None }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.stdin, "{request}").expect("it listens");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{request} was answered: {line:?}"))
    }

    /// Attaches a fresh queue pair to its own lease, as any tenant may.
    async fn attach(&mut self, authd: &Authd, provider: &Provider, blocks: u64) {
        let fresh = self.ask(&json!({ "do": "endpoint" }));
        let number = |field: &str| u32::try_from(fresh[field].as_u64().expect("a number")).expect("24 bits");
        let endpoint = Endpoint { qpn: number("qpn"), psn: number("psn"), ..self.here };
        let deadline = Deadline { boot: provider.boot, tick: tick_in(60_000) };
        let (rights, holder) = (Rights::READ_WRITE, self.identity.public());
        let scope = Scope { lease: lease(2), deadline, first_block: 0, blocks, rights, holder };
        let token = Token::grant(&scope, &authd.identity);
        let request = AttachRequest {
            token: token.hash(),
            lanes: vec![EndpointBytes(endpoint.to_bytes())],
            provider: provider.key,
            boot: provider.boot,
            nonce: Nonce::random(),
        };
        let request = Signed::new(&request, &self.identity);
        let reply = authd.order(Call::Bind(Attach { lease: lease(2), token, request })).await.expect("attaches");
        let Reply::Attached(answer) = reply else { panic!("{reply:?}") };
        let answer = answer.open(&provider.key).expect("signed by the provider");
        let remote = Endpoint::from_bytes(&answer.lanes[0].0).expect("an endpoint");
        let gid = Ipv6Addr::from(remote.gid).to_string();
        self.ask(&json!({
            "do": "connect", "qpn": remote.qpn, "psn": remote.psn, "gid": gid,
            "mtu": remote.mtu.min(self.here.mtu) as u8,
        }));
        self.answer = Some(answer);
    }

    /// One request; its status, and the values that are in its buffer then.
    fn transfer(&mut self, op: &str, (address, rkey): (u64, u32), fill: u8) -> (WcStatus, Vec<u8>) {
        let ended = self.ask(&json!({ "do": op, "address": address, "rkey": rkey, "len": STRIDE, "fill": fill }));
        let status = ended["status"].as_u64().unwrap_or_else(|| panic!("{op} never ended"));
        (WcStatus(status as u32), serde_json::from_value(ended["buffer"].clone()).expect("bytes"))
    }

    fn own(&self) -> (u64, u32) {
        let answer = self.answer.as_ref().expect("attached");
        (answer.address, answer.rkey)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It ends by itself when nobody asks any more; this only makes sure of it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this device and this machine have what another library needs; otherwise it says what is missing.
fn possible() -> bool {
    if device_name() == "soft" {
        println!("SKIPPED: needs a real device: OVERBANK_TEST_DEVICE names one; libibverbs knows no soft device");
        return false;
    }
    let pyverbs = Command::new(PYTHON).args(["-c", "import pyverbs.qp"]).output();
    let there = pyverbs.is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIPPED: needs pyverbs (Debian: apt-get install python3-pyverbs)");
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_another_library_with_a_live_key_and_address_moves_no_byte() {
    if !possible() {
        return;
    }
    let (authd, provider) = connected().await;
    for (id, tenant) in [(1, "alice"), (2, "mallory")] {
        authd.order(carve(provider.boot, lease(id), tenant, 4, 60_000)).await.expect("carves");
    }
    let mut alice = Borrower::new(&device());
    alice.attach(&authd, &provider, lease(1), 4, 60_000).await.expect("attaches");
    assert_eq!(alice.write(0, 0xaa), WcStatus::SUCCESS);
    let mut mallory = Stranger::start(alice.lane.endpoint());

    // With its own key and address it moves bytes both ways: it could, if it might.
    mallory.attach(&authd, &provider, 4).await;
    let own = mallory.own();
    assert_eq!(mallory.transfer("write", own, 0xbb), (WcStatus::SUCCESS, vec![0xbb]));
    let at = usize::try_from(own.0 - provider.backend.memory().address()).expect("in the pool");
    assert!(snapshot(&provider.backend)[at..][..STRIDE].iter().all(|byte| *byte == 0xbb), "it has arrived");
    assert_eq!(mallory.transfer("read", own, 0x66), (WcStatus::SUCCESS, vec![0xbb]));

    let before = snapshot(&provider.backend);
    let hers = alice.block(0);
    // Alice's key and address; her address with its own key; the byte after its own range.
    for case in 0..3 {
        for op in ["write", "read"] {
            let own = mallory.own();
            let target = [hers, (hers.0, own.1), (own.0 + 4 * STRIDE as u64, own.1)][case];
            let ended = mallory.transfer(op, target, 0x66);
            assert_eq!(ended, (WcStatus::REM_ACCESS_ERR, vec![0x66]), "{op} at {target:x?}");
            assert!(snapshot(&provider.backend) == before, "{op} at {target:x?} moved a byte");
            // Its queue pair is dead now.
            mallory.attach(&authd, &provider, 4).await;
            assert_eq!(mallory.own().0, own.0);
        }
    }
    assert_eq!(alice.read(0), Ok(vec![0xaa; STRIDE]), "who is in the right does not notice");
    let own = mallory.own();
    assert_eq!(mallory.transfer("read", own, 0x66), (WcStatus::SUCCESS, vec![0xbb]));
    println!("attack 17 rxe: seen another library is refused with REM_ACCESS_ERR, no byte moved");
}

/// On the soft device they are made by hand: see the test of that number beside this one.
#[tokio::test(flavor = "multi_thread")]
async fn attack_23_atomics_and_sends_of_another_library_move_no_byte() {
    if !possible() {
        return;
    }
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(2), "mallory", 4, 60_000)).await.expect("carves");
    let mut mallory = Stranger::start(Borrower::new(&device()).lane.endpoint());
    mallory.attach(&authd, &provider, 4).await;
    let own = mallory.own();
    assert_eq!(mallory.transfer("write", own, 0xbb), (WcStatus::SUCCESS, vec![0xbb]));
    let before = snapshot(&provider.backend);
    // A WRITE with immediate is a WRITE to the device: where it is granted its bytes may arrive, and nothing else does.
    for op in ["fetch_add", "compare_swap", "send", "send_immediate"] {
        let (status, _) = mallory.transfer(op, mallory.own(), 0x66);
        println!("{op} ended with {status:?}");
        assert_ne!(status, WcStatus::SUCCESS, "{op}");
        assert!(snapshot(&provider.backend) == before, "{op} moved a byte");
        mallory.attach(&authd, &provider, 4).await;
    }
    println!("attack 23 rxe: seen atomics and SENDs are not carried out, no byte moved");
}
