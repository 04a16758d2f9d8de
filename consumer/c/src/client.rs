//! A session with the auth daemon.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use overbank_lib::{Client, Config, DEFAULT_AUTHD, Fingerprint};

use crate::arguments::{self, Options, Out};
use crate::guard::{Failure, guard};
use crate::handles::Table;
use crate::status::overbank_status;

/// Bytes of a fingerprint as text, with the zero at its end.
pub const OVERBANK_FINGERPRINT_LEN: usize = 41;

/// A session with the auth daemon, as one identity. Any number of threads may use it at the same time; their requests are
/// made one after another. Ends with `overbank_client_close`. Of no use in a process that was forked from the one that made it.
pub struct overbank_client {
    _nothing: [u8; 0],
}

static CLIENTS: Table<Client> = Table::new("client");

/// What `overbank_connect` needs to know. Set all of it to zero, then `size` to the size of this struct, then what is to be
/// other than by default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct overbank_config {
    /// The size of this struct.
    pub size: usize,
    /// HOST or HOST:PORT of the auth daemon. Null: OVERBANK_AUTHD, else 127.0.0.1:7471.
    pub authd: *const c_char,
    /// The directory of the identity and of the pinned keys. Null: OVERBANK_HOME, else `overbank` in XDG_CONFIG_HOME, else
    /// `~/.config/overbank`.
    pub home: *const c_char,
    /// The directory of the lease files, which hold the keys. Null: `overbank` in XDG_RUNTIME_DIR, else `leases` in the home.
    pub leases: *const c_char,
    /// The auth daemon's fingerprint, where it came by a way that is trusted. Null: it is taken on trust at the first contact,
    /// and pinned.
    pub authd_fingerprint: *const c_char,
    /// How many milliseconds a request to the auth daemon may take. 0: 5000.
    pub deadline_ms: u64,
}

// SAFETY: it is repr(C), begins with a usize, and numbers and pointers are made of any bytes.
unsafe impl Options for overbank_config {}

/// Connects to the auth daemon, proves who both sides are, and puts a new handle into `*client`, which the caller closes with
/// `overbank_client_close`; null where it fails. Makes this borrower's identity where there is none yet. `config` may be null:
/// all as the environment says. Reads the environment: no other thread may change it meanwhile.
///
/// # Safety
/// `config` is null or points to such a struct, whose texts end in a zero; `client` points to a place for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_connect(
    config: *const overbank_config,
    client: *mut *mut overbank_client,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::handle("client", client) }?;
        // SAFETY: the caller's promise.
        let config = unsafe { read(config) }?;
        out.put(CLIENTS.add(Client::connect(&config)?));
        Ok(())
    })
}

/// # Safety
/// As [`overbank_connect`].
unsafe fn read(config: *const overbank_config) -> Result<Config, Failure> {
    // SAFETY: the caller's promise.
    let (given, authd, home, leases, fingerprint) = unsafe {
        let given = arguments::options("config", config)?;
        (
            given,
            arguments::text("config.authd", given.authd)?,
            arguments::path("config.home", given.home)?,
            arguments::path("config.leases", given.leases)?,
            fingerprint("config.authd_fingerprint", given.authd_fingerprint)?,
        )
    };
    let home = home.map_or_else(Config::default_home, Ok)?;
    let authd = match authd {
        Some(authd) => authd.to_owned(),
        None => std::env::var_os("OVERBANK_AUTHD")
            .map_or_else(|| DEFAULT_AUTHD.to_owned(), |authd| authd.to_string_lossy().into_owned()),
    };
    let mut config = Config::new(&authd, home)?;
    if let Some(leases) = leases {
        config = config.with_leases(leases);
    }
    config.authd_fingerprint = fingerprint;
    if given.deadline_ms != 0 {
        config.deadline = Duration::from_millis(given.deadline_ms);
    }
    Ok(config)
}

/// A fingerprint that may be left out.
///
/// # Safety
/// As [`arguments::text`].
pub(crate) unsafe fn fingerprint(what: &str, text: *const c_char) -> Result<Option<Fingerprint>, Failure> {
    // SAFETY: the caller's promise, passed on.
    let Some(text) = (unsafe { arguments::text(what, text) })? else { return Ok(None) };
    text.parse().map(Some).map_err(|error| Failure::usage(format!("{what} is no fingerprint: {error}")))
}

/// Writes the fingerprint of this borrower's identity into `text`, of `len` bytes, at least OVERBANK_FINGERPRINT_LEN.
///
/// # Safety
/// `text` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_client_fingerprint(
    client: *const overbank_client,
    text: *mut c_char,
    len: usize,
) -> overbank_status {
    guard(|| {
        let fingerprint = find(client)?.fingerprint().to_string();
        // SAFETY: the caller's promise.
        unsafe { arguments::put_text("text", text, len, &fingerprint) }
    })
}

/// Writes the fingerprint of the auth daemon's key into `text`, of `len` bytes, at least OVERBANK_FINGERPRINT_LEN. Puts into
/// `*first_contact`, which may be null, whether the key was pinned by this connection: people should be shown it then.
///
/// # Safety
/// `text` has `len` bytes; `first_contact` is null or points to a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_client_authd(
    client: *const overbank_client,
    text: *mut c_char,
    len: usize,
    first_contact: *mut bool,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let first_contact = unsafe { Out::maybe("first_contact", first_contact) }?;
        let client = find(client)?;
        // SAFETY: the caller's promise.
        unsafe { arguments::put_text("text", text, len, &client.authd().to_string()) }?;
        if let Some(out) = first_contact {
            out.put(client.first_contact());
        }
        Ok(())
    })
}

/// Ends the session, once no other thread is in a call with it. Leases that were made or opened with it can be used on, and
/// keep what they need of it. Null is nothing to close.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_client_close(client: *mut overbank_client) -> overbank_status {
    guard(|| {
        if client.is_null() {
            return Ok(());
        }
        CLIENTS.remove(client).map(drop).ok_or_else(|| CLIENTS.closed())
    })
}

/// The client that a handle stands for.
pub(crate) fn find(client: *const overbank_client) -> Result<Arc<Client>, Failure> {
    CLIENTS.find(client)
}
