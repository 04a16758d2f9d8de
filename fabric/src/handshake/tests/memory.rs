//! After a session no secret of it is left in this process's memory.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::BoxedCryptoResolver;
use zeroize::Zeroizing;

use super::*;

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
}

/// The first two bytes and a hash of every 16-byte window of every secret of this thread's handshakes: the record is not
/// what is found.
static WINDOWS: Mutex<BTreeSet<(u16, u64)>> = Mutex::new(BTreeSet::new());

fn key_of(window: &[u8]) -> (u16, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(window);
    (u16::from_le_bytes([window[0], window[1]]), hasher.finish())
}

/// The primitives that handshakes use in tests: the real ones, looked over the shoulder where a test asks for that.
pub(in super::super) fn primitives() -> BoxedCryptoResolver {
    if RECORDING.get() { Box::new(Recorder) } else { Box::new(resolver::Resolver) }
}

fn record(secret: &[u8]) {
    WINDOWS.lock().unwrap().extend(secret.windows(16).map(key_of));
}

struct Recorder;
struct RecordedDh(Box<dyn Dh>);
struct RecordedHash(Box<dyn Hash>);

impl CryptoResolver for Recorder {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        resolver::Resolver.resolve_rng()
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(RecordedDh(resolver::Resolver.resolve_dh(choice)?)))
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        Some(Box::new(RecordedHash(resolver::Resolver.resolve_hash(choice)?)))
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        resolver::Resolver.resolve_cipher(choice)
    }
}

impl Dh for RecordedDh {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn pub_len(&self) -> usize {
        self.0.pub_len()
    }
    fn priv_len(&self) -> usize {
        self.0.priv_len()
    }
    fn set(&mut self, secret: &[u8]) {
        record(secret);
        self.0.set(secret);
    }
    fn generate(&mut self, random: &mut dyn Random) -> Result<(), snow::Error> {
        self.0.generate(random)?;
        record(self.0.privkey());
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        self.0.pubkey()
    }
    fn privkey(&self) -> &[u8] {
        self.0.privkey()
    }
    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        self.0.dh(theirs, out)?;
        record(&out[..32]);
        Ok(())
    }
}

impl Hash for RecordedHash {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn block_len(&self) -> usize {
        self.0.block_len()
    }
    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn input(&mut self, data: &[u8]) {
        self.0.input(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        self.0.result(out);
    }
    fn hkdf(&mut self, key: &[u8], input: &[u8], outputs: usize, one: &mut [u8], two: &mut [u8], three: &mut [u8]) {
        self.0.hkdf(key, input, outputs, one, two, three);
        // Inputs are ephemeral public keys, which are no secrets, exchanged secrets, which are recorded, and the psk.
        record(&one[..32]);
        record(&two[..32]);
        if outputs == 3 {
            record(&three[..32]);
            record(input);
        }
    }
}

/// How many windows of the recorded secrets are somewhere in the writable memory of this process.
fn found() -> usize {
    let windows = WINDOWS.lock().unwrap();
    let mut begins = vec![false; 1 << 16];
    windows.iter().for_each(|(begin, _)| begins[usize::from(*begin)] = true);
    let mut memory = fs::File::open("/proc/self/mem").unwrap();
    let mut buffer = Zeroizing::new(vec![0; 1 << 20]);
    let own = buffer.as_ptr() as u64..buffer.as_ptr() as u64 + buffer.len() as u64;
    let mut found = 0;
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        while at < end {
            memory.seek(SeekFrom::Start(at)).unwrap();
            let wanted = buffer.len().min((end - at) as usize);
            // Fails where a mapping is gone by now, or is none that can be read.
            let Ok(read @ 16..) = memory.read(&mut buffer[..wanted]) else { break };
            for (offset, window) in buffer[..read].windows(16).enumerate() {
                let begin = usize::from(u16::from_le_bytes([window[0], window[1]]));
                if begins[begin] && windows.contains(&key_of(window)) && !own.contains(&(at + offset as u64)) {
                    found += 1;
                }
            }
            // Windows that begin in one piece and end in the next are in neither but for this.
            at += if at + read as u64 == end { read as u64 } else { read as u64 - 15 };
        }
    }
    found
}

#[test]
fn no_secret_of_a_session_stays_in_memory() {
    RECORDING.set(true);
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (message_1, started) = start(Party::Client).unwrap();
    wiped(|| record(&*started.decapsulation_key.seed()));
    let (message_2, responding) = respond(&authd, &message_1).unwrap();
    let (_, answered) = started.read(&message_2).unwrap();
    let (message_3, near) = answered.finish(&client).unwrap();
    let (_, far) = responding.read(&message_3).unwrap();
    RECORDING.set(false);
    let windows = WINDOWS.lock().unwrap().len();
    assert!(windows > 20 * 17, "{windows} windows are known");
    assert!(found() > 0, "the keys of a living session are found");
    drop((near, far));
    assert_eq!(found(), 0, "windows of secrets");
}
