//! What is left to a daemon's process: the system calls that it needs (seccomp), the files and TCP ports that it uses
//! (Landlock), and no way to any new privilege. It holds for the calling thread and all that it starts from then on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// How much it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// As much as this kernel offers.
    #[default]
    Auto,
    /// The daemon does not start where a part is missing.
    Strict,
    /// None of it.
    Off,
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "strict" => Ok(Self::Strict),
            "off" => Ok(Self::Off),
            _ => Err(format!("'{text}' is no sandbox: use auto, strict or off")),
        }
    }
}

/// What a daemon needs besides memory, sockets and time.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Directories and files of its own. Those that are not there are no help and no error.
    pub write: Vec<PathBuf>,
    /// TCP ports that it connects to. Name service over TCP is among them where there are any.
    pub connect: Vec<u16>,
    /// TCP ports that it listens on; 0 means any that is free.
    pub listen: Vec<u16>,
    /// Whether it opens RDMA devices.
    pub devices: bool,
    /// Whether it makes files of memory, to share them with other processes.
    pub memory_files: bool,
}

/// A part that is missing, in strict mode.
#[derive(Debug, thiserror::Error)]
#[error("no {part} for the sandbox: {why}; use --sandbox auto to go on with what there is")]
pub struct Missing {
    part: &'static str,
    why: String,
}

/// What came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status(String);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Read by the C library for names, by the loader for libibverbs and its drivers, and for the state of devices and pages.
const READ: [&str; 17] = [
    "/proc",
    "/sys",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/libibverbs.d",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/gai.conf",
    "/run/systemd/resolve",
    "/dev/urandom",
    "/dev/null",
];
const DEVICES: &str = "/dev/infiniband";
const DNS: u16 = 53;

/// Confines the calling thread, and all that it starts.
///
/// # Errors
/// [`Missing`], in strict mode alone.
pub fn confine(mode: Mode, needs: &Needs) -> Result<Status, Missing> {
    if mode == Mode::Off {
        return Ok(Status("off".to_owned()));
    }
    let mut parts = Vec::new();
    let mut note = |part: &'static str, outcome: Result<String, String>| match outcome {
        Ok(text) => {
            parts.push(text);
            Ok(())
        }
        Err(why) if mode == Mode::Strict => Err(Missing { part, why }),
        Err(why) => {
            parts.push(format!("no {part} ({why})"));
            Ok(())
        }
    };
    note("Landlock", restrict_files(needs))?;
    note("seccomp", restrict_calls(needs))?;
    Ok(Status(parts.join(", ")))
}

fn restrict_files(needs: &Needs) -> Result<String, String> {
    // What the kernel does not know of is left out; which kernels know what, the status says.
    const NEWEST: ABI = ABI::V6;
    let text = |error: landlock::RulesetError| error.to_string();
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(text)?;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = all & !BitFlags::from(AccessFs::Execute);
    let mut paths: Vec<(PathBuf, BitFlags<AccessFs>)> = READ.iter().map(|path| (path.into(), read)).collect();
    paths.extend(needs.write.iter().map(|path| (path.clone(), own)));
    if needs.devices {
        paths.push((DEVICES.into(), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev));
    }
    for (path, access) in paths {
        let Ok(opened) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(opened, access)).map_err(text)?;
    }
    let dns = (!needs.connect.is_empty()).then_some(DNS);
    for port in needs.connect.iter().copied().chain(dns) {
        rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map_err(text)?;
    }
    for port in &needs.listen {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp)).map_err(text)?;
    }
    let status = rules.restrict_self().map_err(text)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok("Landlock (files, devices, TCP ports, signals)".to_owned()),
        RulesetStatus::PartiallyEnforced => Ok(format!("Landlock as far as this kernel goes ({:?})", status.landlock)),
        RulesetStatus::NotEnforced => Err("this kernel has none".to_owned()),
    }
}

fn restrict_calls(needs: &Needs) -> Result<String, String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let arch = std::env::consts::ARCH.try_into().map_err(text)?;
    let only = |argument: u8, values: &[i32]| -> Result<Vec<SeccompRule>, String> {
        let is = |value: &i32| {
            let value = u64::from(value.unsigned_abs());
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
                .and_then(|condition| SeccompRule::new(vec![condition]))
        };
        values.iter().map(is).collect::<Result<_, _>>().map_err(text)
    };
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    if needs.memory_files {
        allowed.insert(libc::SYS_memfd_create, Vec::new());
    }
    #[cfg(target_arch = "x86_64")]
    allowed.extend(OLD_CALLS.iter().map(|call| (*call, Vec::new())));
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    allowed.insert(libc::SYS_socket, only(0, &families)?);
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let threads_alone = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread);
    let threads_alone = threads_alone.and_then(|condition| SeccompRule::new(vec![condition])).map_err(text)?;
    allowed.insert(libc::SYS_clone, vec![threads_alone]);
    let count = allowed.len();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let calls = SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch).map_err(text)?;
    // Its flags lie in memory, where no filter sees them: the C library then takes clone.
    let unseen = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let not_there = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let unseen = SeccompFilter::new(unseen, SeccompAction::Allow, not_there, arch).map_err(text)?;
    for filter in [unseen, calls] {
        let program: BpfProgram = filter.try_into().map_err(text)?;
        seccompiler::apply_filter(&program).map_err(|error| error.to_string())?;
    }
    Ok(format!("seccomp ({count} system calls)"))
}

/// Everything that the daemons, the C library, tokio, SQLite and libibverbs use. All else is refused: to execute, to trace, to
/// mount, to load into the kernel, to enter namespaces, to make another process.
const CALLS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_tkill,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What other architectures never had.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
