//! Leases that are shared: a part of what one holds, for another identity, as a bundle of bytes that can be sent in any way.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::time::Duration;

use overbank_lib::{Client, Fingerprint, ShareRequest, read_bundle, write_bundle};

use crate::arguments::{self, Options, Out};
use crate::client::{self, overbank_client};
use crate::guard::{Failure, guard};
use crate::lease::{self, overbank_lease};
use crate::status::overbank_status;

/// What to share of a lease. Set all of it to zero, then `size` to the size of this struct, then what is to be other than by
/// default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct overbank_share_options {
    /// The size of this struct.
    pub size: usize,
    /// First byte, of a whole block.
    pub first: u64,
    /// The byte after the last, of a whole block too, or the lease's end. 0: as far as we have it.
    pub end: u64,
    /// For how many milliseconds. 0: as long as the lease lasts by now. A renewal does not make it longer.
    pub ttl_ms: u64,
    /// Whether it may only be read: 0 or 1.
    pub read_only: u32,
    /// Nothing: 0.
    pub reserved: u32,
}

// SAFETY: it is repr(C), begins with a usize, and numbers are made of any bytes.
unsafe impl Options for overbank_share_options {}

/// Shares a lease, or a part of it, with the trusted identity of the fingerprint `to`: writes a bundle to the file `path`, which
/// is of use to that identity alone and can be sent in any way. `options` may be null: all of it, for writing too. Where others
/// may write, the lease's freshness is unknown from here on.
///
/// # Safety
/// `to` and `path` are texts that end in a zero; `options` is null or points to such a struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_share(
    lease: *mut overbank_lease,
    to: *const c_char,
    options: *const overbank_share_options,
    path: *const c_char,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (to, options, path) = unsafe {
            let to = client::fingerprint("to", to)?;
            (to, arguments::options("options", options)?, arguments::path("path", path)?)
        };
        let (to, path) = (arguments::given("to", to)?, arguments::given("path", path)?);
        if options.reserved != 0 || options.read_only > 1 {
            let text =
                "options.read_only is not 0 or 1, or options.reserved not 0: set the struct to zero before you fill it";
            return Err(Failure::usage(text));
        }
        let bundle = lease::with(lease, |held, lease| {
            let request = ShareRequest {
                read_only: options.read_only == 1,
                range: match (options.first, options.end) {
                    (0, 0) => None,
                    (first, 0) => Some(first..lease.reach().end),
                    (first, end) => Some(first..end),
                },
                ttl: (options.ttl_ms != 0).then(|| Duration::from_millis(options.ttl_ms)),
                ..ShareRequest::new(held.client.key_of(to)?)
            };
            Ok(lease.share(&request)?)
        })?;
        Ok(write_bundle(&path, &bundle)?)
    })
}

/// Opens what somebody shared with us, from its bytes, writes it down as a lease file, so that `overbank_lease_open` finds it
/// again, and puts a new handle into `*lease`, which the caller closes; null where it fails. `from` is the fingerprint of who is
/// expected to have shared it; null: anybody. Any thread.
///
/// # Safety
/// `bundle` has `len` bytes; `from` is null or a text that ends in a zero; `lease` points to a place for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_share_open(
    client: *const overbank_client,
    bundle: *const c_void,
    len: usize,
    from: *const c_char,
    lease: *mut *mut overbank_lease,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (out, bundle, from) = unsafe {
            let out = Out::handle("lease", lease)?;
            (out, arguments::bytes("bundle", bundle, len)?, client::fingerprint("from", from)?)
        };
        out.put(open(&*client::find(client)?, bundle, from)?);
        Ok(())
    })
}

/// The same, from a file.
///
/// # Safety
/// `path` is a text that ends in a zero; `from` is null or such a text; `lease` points to a place for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_share_open_file(
    client: *const overbank_client,
    path: *const c_char,
    from: *const c_char,
    lease: *mut *mut overbank_lease,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (out, path, from) = unsafe {
            let out = Out::handle("lease", lease)?;
            (out, arguments::path("path", path)?, client::fingerprint("from", from)?)
        };
        let path: PathBuf = arguments::given("path", path)?;
        out.put(open(&*client::find(client)?, &read_bundle(&path)?, from)?);
        Ok(())
    })
}

fn open(client: &Client, bundle: &[u8], from: Option<Fingerprint>) -> Result<*mut overbank_lease, Failure> {
    let shared = client.open_share(bundle, from)?;
    Ok(lease::add(client, client.open_lease(shared.lease)?))
}
