//! Looking for pieces of secrets in memory, this process's own included: what is looked for is known by its hash alone.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sha2::{Digest, Sha512};

/// Bytes of a window.
const WINDOW: usize = 16;
const READ: usize = 1 << 20;

/// Every window of some secrets.
pub(crate) struct Windows {
    /// By their first two bytes.
    begins: Vec<bool>,
    hashes: HashSet<u64>,
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self { begins: vec![false; 1 << 16], hashes: HashSet::new() }
    }

    /// Every window of this one, as bytes and as hexadecimal digits.
    pub(crate) fn add(&mut self, secret: &[u8]) {
        let mut hex = vec![0; 2 * secret.len()];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(secret) {
            for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = b"0123456789abcdef"[usize::from(half)];
            }
        }
        for bytes in [secret, &hex] {
            for window in bytes.windows(WINDOW) {
                self.begins[begin(window)] = true;
                self.hashes.insert(hash(window));
            }
        }
        overwrite(&mut hex);
    }

    /// The secret of a key file: its seed, and what Ed25519 makes of it. The copies are overwritten.
    pub(crate) fn add_key_file(&mut self, path: &std::path::Path) {
        self.add_copies(path);
        leave_no_stack();
    }

    #[inline(never)]
    fn add_copies(&mut self, path: &std::path::Path) {
        let mut text = std::fs::read(path).expect("a key file");
        let mut seed = [0; 32];
        let digits = text.split(|byte| *byte == b'\n').nth(1).expect("its second line");
        for (byte, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| (pair[at] as char).to_digit(16).expect("a digit") as u8;
            *byte = digit(0) << 4 | digit(1);
        }
        self.add(&seed);
        let mut expanded = Sha512::digest(seed);
        self.add(&expanded[32..]);
        (expanded[0], expanded[31]) = (expanded[0] & 248, expanded[31] & 127 | 64);
        self.add(&expanded[..32]);
        overwrite(&mut text);
        overwrite(&mut seed);
        overwrite(&mut expanded);
    }

    /// Where in the writable memory of a process one of them is.
    pub(crate) fn find(&self, pid: u32) -> io::Result<Vec<String>> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut buffer = vec![0; READ];
        let own =
            if pid == std::process::id() { buffer.as_ptr() as u64..buffer.as_ptr() as u64 + READ as u64 } else { 0..0 };
        let mut found = Vec::new();
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().expect("a range"), words.next().expect("rights"));
            if !rights.starts_with("rw") {
                continue;
            }
            let (from, to) = range.split_once('-').expect("from and to");
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            let (mut at, end) = (address(from), address(to));
            while at < end {
                let wanted = READ.min((end - at) as usize);
                let Ok(read @ WINDOW..) = memory.read_at(&mut buffer[..wanted], at) else { break };
                for (offset, window) in buffer[..read].windows(WINDOW).enumerate() {
                    let here = at + offset as u64;
                    if self.begins[begin(window)] && self.hashes.contains(&hash(window)) && !own.contains(&here) {
                        found.push(format!("{here:#x} in {line}"));
                    }
                }
                at += if at + read as u64 == end { read as u64 } else { (read - WINDOW + 1) as u64 };
            }
        }
        overwrite(&mut buffer);
        Ok(found)
    }
}

fn begin(window: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([window[0], window[1]]))
}

fn hash(window: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(window);
    hasher.finish()
}

/// Hash functions leave their blocks there.
#[inline(never)]
fn leave_no_stack() {
    std::hint::black_box(&mut [0u8; 64 << 10]);
}

/// So that the copy is not what is found.
pub(crate) fn overwrite(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// Sends a process, a child of this one, a signal and looks at it in the last moment that its memory is there. `None` where
/// this process may not trace it.
pub(crate) fn at_the_end_of<T>(pid: u32, signal: Option<Signal>, look: impl FnOnce() -> T) -> Option<T> {
    let pid = Pid::from_raw(pid.try_into().expect("a pid"));
    if let Err(error) = ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT) {
        eprintln!("SKIPPED: no right to trace another process ({error})");
        return None;
    }
    if let Some(signal) = signal {
        kill(pid, signal).expect("it is there");
    }
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut look = Some(look);
    let mut seen = None;
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).expect("a child") {
            WaitStatus::PtraceEvent(_, _, event) => {
                if event == Event::PTRACE_EVENT_EXIT as i32 {
                    seen = Some(look.take().expect("it ends once")());
                }
                ptrace::cont(pid, None).expect("it goes on");
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).expect("it goes on"),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return seen,
            _ => {
                assert!(std::time::Instant::now() < until, "it does not end");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}
