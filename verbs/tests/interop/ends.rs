//! A real device here, a soft one in the other network namespace, and queue pairs between them.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use overbank_verbs::{Access, Counters, Device, DeviceOptions, Mtu, Retry};

pub(crate) use crate::end::*;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The two devices. One case at a time has them: the wire is one.
pub(crate) struct Scene {
    pub(crate) real: Device,
    pub(crate) soft: Device,
    /// The soft device's counters, and the real one's, when the case began.
    before: (Counters, BTreeMap<String, u64>),
    begun: Instant,
}

/// Which of the two asks; the other answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Real,
    Soft,
}

pub(crate) const BOTH: [Asker; 2] = [Asker::Soft, Asker::Real];

pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(format!("OVERBANK_INTEROP_{name}")).ok().filter(|value| !value.is_empty())
}

/// The scene, or None with a word about what is missing.
pub(crate) fn scene() -> Option<MutexGuard<'static, Scene>> {
    static SCENE: OnceLock<Result<Mutex<Scene>, String>> = OnceLock::new();
    match SCENE.get_or_init(|| Scene::open().map(Mutex::new)) {
        Ok(scene) => {
            let mut scene = scene.lock().unwrap_or_else(PoisonError::into_inner);
            scene.before = scene.counters();
            scene.begun = Instant::now();
            Some(scene)
        }
        Err(missing) => {
            println!("SKIPPED: {missing}");
            None
        }
    }
}

pub(crate) fn namespace() -> String {
    setting("NAMESPACE").unwrap_or_else(|| "far".to_owned())
}

pub(crate) fn namespace_handle() -> Option<PathBuf> {
    let handles = ["/run/netns", "/var/run/netns"].map(|dir| Path::new(dir).join(namespace()));
    handles.into_iter().find(|handle| handle.exists())
}

impl Scene {
    fn open() -> Result<Self, String> {
        let name = setting("DEVICE").ok_or("OVERBANK_INTEROP_DEVICE names no real device to talk to")?;
        let handle = namespace_handle()
            .ok_or_else(|| format!("no network namespace '{}' for the other end of the wire", namespace()))?;
        let real = Device::open(&name, &DeviceOptions::new(IpAddr::from([127, 0, 0, 1]))).expect("the device opens");
        let address = setting("ADDRESS").unwrap_or_else(|| "10.9.0.2".to_owned());
        let mut options = DeviceOptions::new(address.parse().expect("an IP address"));
        options.port = Some(4791);
        if let Some(mtu) = setting("MTU") {
            let mtu = Mtu::ALL.into_iter().find(|known| known.bytes().to_string() == mtu);
            options.mtu = mtu.expect("OVERBANK_INTEROP_MTU is a path MTU");
        }
        let name = setting("SOFT").unwrap_or_else(|| "soft".to_owned());
        let soft = inside(&handle, move || Device::open(&name, &options).expect("the soft device opens"));
        println!("{}\n{}", real.describe(), soft.describe());
        let mut scene = Self { real, soft, before: Default::default(), begun: Instant::now() };
        scene.before = scene.counters();
        Ok(scene)
    }

    /// Both ends, connected: the asker may do what `rights` says, the other nothing.
    pub(crate) fn pair(&self, asker: Asker, rights: Access, retry: Retry) -> (End, End) {
        let (a, b) = (End::on(self.device(asker)), End::on(self.device(asker.other())));
        connect(&a, Access::empty(), &b, rights, retry);
        (a, b)
    }

    pub(crate) fn device(&self, asker: Asker) -> &Device {
        match asker {
            Asker::Real => &self.real,
            Asker::Soft => &self.soft,
        }
    }

    /// Payload bytes of a full packet between them.
    pub(crate) fn mtu(&self) -> usize {
        let [real, soft] = BOTH.map(|asker| End::on(self.device(asker)).qp.endpoint().mtu);
        real.min(soft).bytes()
    }

    /// What the soft device counts, and what the real one's driver does.
    fn counters(&self) -> (Counters, BTreeMap<String, u64>) {
        let dir = format!("/sys/class/infiniband/{}/ports/1/hw_counters", self.real.name());
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let real = files.filter_map(|file| {
            let value = std::fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            Some((file.file_name().to_string_lossy().into_owned(), value))
        });
        (self.soft.counters(), real.collect())
    }

    /// One line about what was on the wire in this case.
    pub(crate) fn report(&self, what: &str) {
        let ((soft, real), (soft_before, real_before)) = (self.counters(), &self.before);
        let grown =
            |(name, value): (&str, u64), before: u64| (value > before).then(|| format!("{name} {}", value - before));
        let dropped = soft
            .dropped
            .iter()
            .filter_map(|(name, value)| grown((name, *value), soft_before.dropped.get(name).copied().unwrap_or(0)));
        let real =
            real.iter().filter_map(|(name, value)| grown((name, *value), real_before.get(name).copied().unwrap_or(0)));
        println!(
            "{what}; {:.1} s; path MTU {}; soft: sent {}, taken {}, repeated {}, dropped {:?}; {}: {:?}",
            self.begun.elapsed().as_secs_f64(),
            self.mtu(),
            soft.sent - soft_before.sent,
            soft.received - soft_before.received,
            soft.retransmitted - soft_before.retransmitted,
            dropped.collect::<Vec<_>>(),
            self.real.name(),
            real.collect::<Vec<_>>(),
        );
        // Where packets are damaged on purpose, the words for it say so.
        let unfit = |counters: &Counters| counters.dropped.get("ICRC").copied().unwrap_or(0);
        let is_whole = unfit(&soft) == unfit(soft_before) || what.contains("corrupt");
        assert!(is_whole, "{what}: the real device's ICRC did not fit: {soft:?}");
    }
}

impl Asker {
    pub(crate) fn other(self) -> Self {
        if self == Self::Real { Self::Soft } else { Self::Real }
    }
}

/// Runs something on a thread in another network namespace. Sockets stay in the one they were made in, and a thread that
/// is started there stays there.
pub(crate) fn inside<T: Send + 'static>(handle: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let handle = File::open(handle).expect("the network namespace opens");
    let thread = std::thread::spawn(move || {
        setns(handle, CloneFlags::CLONE_NEWNET).expect("entering a network namespace takes root");
        work()
    });
    thread.join().expect("the thread in the namespace ends")
}
