//! libibverbs: its functions, found when first needed, and its objects, each owned once and destroyed once.
//!
//! Types and the calls that are inline in C come from the crate rdma-sys; the library itself is opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, OnceLock};

use libloading::Library as Dynamic;
use rdma_sys as c;

use crate::{Limits, Memory};

pub(super) use rdma_sys::ibv_qp_attr as QpAttr;

/// The functions of libibverbs that are no inline functions.
pub(super) struct Library {
    get_device_list: unsafe extern "C" fn(*mut c_int) -> *mut *mut c::ibv_device,
    free_device_list: unsafe extern "C" fn(*mut *mut c::ibv_device),
    get_device_name: unsafe extern "C" fn(*mut c::ibv_device) -> *const c_char,
    open_device: unsafe extern "C" fn(*mut c::ibv_device) -> *mut c::ibv_context,
    close_device: unsafe extern "C" fn(*mut c::ibv_context) -> c_int,
    query_device: unsafe extern "C" fn(*mut c::ibv_context, *mut c::ibv_device_attr) -> c_int,
    query_port: unsafe extern "C" fn(*mut c::ibv_context, u8, *mut c::ibv_port_attr) -> c_int,
    get_async_event: unsafe extern "C" fn(*mut c::ibv_context, *mut RawEvent) -> c_int,
    ack_async_event: unsafe extern "C" fn(*mut RawEvent),
    alloc_pd: unsafe extern "C" fn(*mut c::ibv_context) -> *mut c::ibv_pd,
    dealloc_pd: unsafe extern "C" fn(*mut c::ibv_pd) -> c_int,
    reg_mr: unsafe extern "C" fn(*mut c::ibv_pd, *mut c_void, usize, c_int) -> *mut c::ibv_mr,
    dereg_mr: unsafe extern "C" fn(*mut c::ibv_mr) -> c_int,
    create_comp_channel: unsafe extern "C" fn(*mut c::ibv_context) -> *mut c::ibv_comp_channel,
    destroy_comp_channel: unsafe extern "C" fn(*mut c::ibv_comp_channel) -> c_int,
    create_cq: unsafe extern "C" fn(
        *mut c::ibv_context,
        c_int,
        *mut c_void,
        *mut c::ibv_comp_channel,
        c_int,
    ) -> *mut c::ibv_cq,
    destroy_cq: unsafe extern "C" fn(*mut c::ibv_cq) -> c_int,
    get_cq_event: unsafe extern "C" fn(*mut c::ibv_comp_channel, *mut *mut c::ibv_cq, *mut *mut c_void) -> c_int,
    ack_cq_events: unsafe extern "C" fn(*mut c::ibv_cq, c_uint),
    create_qp: unsafe extern "C" fn(*mut c::ibv_pd, *mut c::ibv_qp_init_attr) -> *mut c::ibv_qp,
    modify_qp: unsafe extern "C" fn(*mut c::ibv_qp, *mut c::ibv_qp_attr, c_int) -> c_int,
    query_qp: unsafe extern "C" fn(*mut c::ibv_qp, *mut c::ibv_qp_attr, c_int, *mut c::ibv_qp_init_attr) -> c_int,
    destroy_qp: unsafe extern "C" fn(*mut c::ibv_qp) -> c_int,
    _dynamic: Dynamic,
}

/// What a device reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    /// `ibv_event_type`.
    pub(super) kind: i32,
    /// The port, of an event of a port; else of no meaning.
    pub(super) port: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
union RawElement {
    object: *mut c_void,
    port: c_int,
}

/// `struct ibv_async_event`, with the event's type as the number that it is.
#[repr(C)]
struct RawEvent {
    /// A union of pointers and of an `int`, the number of a port.
    element: RawElement,
    event_type: c_int,
}

impl Library {
    /// The library, opened once.
    pub(super) fn get() -> Result<&'static Self, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, String> {
        let said = |error: libloading::Error| error.to_string();
        // SAFETY: loading runs the library's initialisers; libibverbs is made to be loaded at run time, and has no
        // demands on the thread that does it.
        let dynamic = unsafe { Dynamic::new("libibverbs.so.1") }.map_err(said)?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type repeats the declaration of this function in <infiniband/verbs.h>; the
                // library stays loaded as long as the pointer exists, since both live in the same struct.
                unsafe { *dynamic.get(concat!($name, "\0").as_bytes()).map_err(said)? }
            };
        }
        Ok(Self {
            get_device_list: symbol!("ibv_get_device_list"),
            free_device_list: symbol!("ibv_free_device_list"),
            get_device_name: symbol!("ibv_get_device_name"),
            open_device: symbol!("ibv_open_device"),
            close_device: symbol!("ibv_close_device"),
            query_device: symbol!("ibv_query_device"),
            query_port: symbol!("ibv_query_port"),
            get_async_event: symbol!("ibv_get_async_event"),
            ack_async_event: symbol!("ibv_ack_async_event"),
            alloc_pd: symbol!("ibv_alloc_pd"),
            dealloc_pd: symbol!("ibv_dealloc_pd"),
            reg_mr: symbol!("ibv_reg_mr"),
            dereg_mr: symbol!("ibv_dereg_mr"),
            create_comp_channel: symbol!("ibv_create_comp_channel"),
            destroy_comp_channel: symbol!("ibv_destroy_comp_channel"),
            create_cq: symbol!("ibv_create_cq"),
            destroy_cq: symbol!("ibv_destroy_cq"),
            get_cq_event: symbol!("ibv_get_cq_event"),
            ack_cq_events: symbol!("ibv_ack_cq_events"),
            create_qp: symbol!("ibv_create_qp"),
            modify_qp: symbol!("ibv_modify_qp"),
            query_qp: symbol!("ibv_query_qp"),
            destroy_qp: symbol!("ibv_destroy_qp"),
            _dynamic: dynamic,
        })
    }

    /// Calls `visit` with each device and its name until it answers.
    fn find<T>(&self, mut visit: impl FnMut(*mut c::ibv_device, String) -> Option<T>) -> io::Result<Option<T>> {
        let mut count = 0;
        // SAFETY: the call writes the number of devices and returns an array of as many pointers, or null.
        let list = unsafe { (self.get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut found = None;
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the array has `count` entries, each a device that lives until the list is freed; its name is a
            // C string inside of it.
            let (device, name) = unsafe {
                let device = *list.add(index);
                (device, CStr::from_ptr((self.get_device_name)(device)).to_string_lossy().into_owned())
            };
            found = visit(device, name);
            if found.is_some() {
                break;
            }
        }
        // SAFETY: the list came from get_device_list and is freed once; no device pointer of it is kept.
        unsafe { (self.free_device_list)(list) };
        Ok(found)
    }

    /// Names of all devices.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.find(|_, name| {
            names.push(name);
            None::<()>
        })?;
        Ok(names)
    }
}

/// The result of a call that answers with an errno.
fn checked(errno: c_int) -> io::Result<()> {
    match errno {
        0 => Ok(()),
        // Some providers answer -1 and leave the code in errno, some answer a negated code.
        -1 => Err(io::Error::last_os_error()),
        code => Err(io::Error::from_raw_os_error(code.abs())),
    }
}

/// An open device.
pub(super) struct Context {
    raw: NonNull<c::ibv_context>,
    library: &'static Library,
}

// SAFETY: libibverbs allows every call on a context from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; its calls lock what they must.
unsafe impl Sync for Context {}

/// A port as the device reports it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    /// `ibv_port_state`: 4 is active.
    pub(super) state: u32,
    /// `ibv_mtu`.
    pub(super) active_mtu: u32,
    pub(super) lid: u16,
    pub(super) gids: usize,
    /// 1 InfiniBand, 2 Ethernet.
    pub(super) link_layer: u8,
}

impl Context {
    /// Opens the device of this name; None where there is none.
    pub(super) fn open(library: &'static Library, name: &str) -> io::Result<Option<Self>> {
        let opened = library.find(|device, candidate| {
            (candidate == name).then(|| {
                // SAFETY: `device` is in the list that is not freed before this returns.
                let raw = unsafe { (library.open_device)(device) };
                NonNull::new(raw).ok_or_else(io::Error::last_os_error)
            })
        })?;
        let Some(raw) = opened.transpose()? else { return Ok(None) };
        let context = Self { raw, library };
        context.unblock(context.async_fd())?;
        Ok(Some(context))
    }

    fn unblock(&self, fd: RawFd) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        // SAFETY: the descriptor belongs to an object of this context, which outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }

    fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open as long as `self`.
        unsafe { (*self.raw.as_ptr()).async_fd }
    }

    /// What it holds at most, and how many ports it has.
    pub(super) fn limits(&self) -> io::Result<(Limits, u8)> {
        let mut attr = MaybeUninit::<c::ibv_device_attr>::zeroed();
        // SAFETY: the call fills a struct of this type; it is plain numbers, for which zero is valid too.
        let attr = unsafe {
            checked((self.library.query_device)(self.raw.as_ptr(), attr.as_mut_ptr()))?;
            attr.assume_init()
        };
        let number = |value: c_int| usize::try_from(value).unwrap_or(0);
        let limits = Limits {
            queue_pairs: number(attr.max_qp),
            send_queue: number(attr.max_qp_wr),
            completions: number(attr.max_cqe),
            regions: number(attr.max_mr),
            domains: number(attr.max_pd),
            region_bytes: attr.max_mr_size,
            // As the one that answers, and as the one that asks.
            outstanding_reads: u8::try_from(attr.max_qp_rd_atom.min(attr.max_qp_init_rd_atom).clamp(0, 255))
                .unwrap_or(0),
        };
        Ok((limits, attr.phys_port_cnt))
    }

    pub(super) fn port(&self, port: u8) -> io::Result<Port> {
        let mut attr = MaybeUninit::<c::ibv_port_attr>::zeroed();
        // SAFETY: the call fills the beginning of a struct of this type (older versions of it were shorter); it is
        // plain numbers, for which zero is valid too.
        let attr = unsafe {
            checked((self.library.query_port)(self.raw.as_ptr(), port, attr.as_mut_ptr()))?;
            attr.assume_init()
        };
        Ok(Port {
            state: attr.state,
            active_mtu: attr.active_mtu,
            lid: attr.lid,
            gids: usize::try_from(attr.gid_tbl_len).unwrap_or(0),
            link_layer: attr.link_layer,
        })
    }

    /// The next asynchronous event, if there is one. Never waits.
    pub(super) fn take_event(&self) -> Option<Event> {
        let mut event = RawEvent { element: RawElement { object: null_mut() }, event_type: 0 };
        // SAFETY: the call fills the struct, which has the layout of ibv_async_event; the descriptor does not block.
        // What it got is acknowledged once, here; the objects that it names are not touched, and all bytes of the
        // union were set, so that they are some number whatever the event.
        let port = unsafe {
            if (self.library.get_async_event)(self.raw.as_ptr(), &raw mut event) != 0 {
                return None;
            }
            (self.library.ack_async_event)(&raw mut event);
            event.element.port
        };
        Some(Event { kind: event.event_type, port })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; every object made from it holds an Arc of it and is gone.
        let closed = unsafe { (self.library.close_device)(self.raw.as_ptr()) };
        if let Err(error) = checked(closed) {
            tracing::error!(%error, "an RDMA device could not be closed");
        }
    }
}

/// Destroys an object of the library in `drop` where `end` was not called, and says so where that fails.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $destroy:ident, $what:literal, { $($field:ident: $type:ty),* }) => {
        $(#[$doc])*
        pub(super) struct $name {
            raw: NonNull<$raw>,
            alive: bool,
            context: Arc<Context>,
            $($field: $type,)*
        }

        // SAFETY: libibverbs allows calls on its objects from any thread.
        unsafe impl Send for $name {}
        // SAFETY: as above; its calls lock what they must.
        unsafe impl Sync for $name {}

        impl $name {
            /// Destroys it; with an error it still exists, for good.
            pub(super) fn end(&mut self) -> io::Result<()> {
                if !std::mem::replace(&mut self.alive, false) {
                    return Ok(());
                }
                // SAFETY: made once by the matching call, destroyed once; what it depends on is held in its fields.
                checked(unsafe { (self.context.library.$destroy)(self.raw.as_ptr()) })
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if let Err(error) = self.end() {
                    tracing::error!(%error, concat!("a ", $what, " was dropped and could not be destroyed"));
                }
            }
        }
    };
}

owned!(
    /// A protection domain.
    Pd, c::ibv_pd, dealloc_pd, "protection domain", {}
);
owned!(
    /// A registered memory region. The memory lives as long as it.
    Mr, c::ibv_mr, dereg_mr, "memory region", { _pd: Arc<Pd>, memory: Arc<Memory> }
);
owned!(
    /// A completion channel.
    Channel, c::ibv_comp_channel, destroy_comp_channel, "completion channel", {}
);
owned!(
    /// A completion queue.
    Cq, c::ibv_cq, destroy_cq, "completion queue", { channel: Arc<Channel> }
);
owned!(
    /// A reliable connected queue pair.
    Qp, c::ibv_qp, destroy_qp, "queue pair", { _pd: Arc<Pd>, _cq: Arc<Cq> }
);

impl Pd {
    pub(super) fn new(context: &Arc<Context>) -> io::Result<Self> {
        // SAFETY: the context is open.
        let raw = unsafe { (context.library.alloc_pd)(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, alive: true, context: Arc::clone(context) })
    }
}

impl Mr {
    /// `flags` of `ibv_access_flags`; the caller has checked that the range lies inside of the memory.
    pub(super) fn new(pd: &Arc<Pd>, memory: &Arc<Memory>, offset: usize, len: usize, flags: u32) -> io::Result<Self> {
        let address = memory.address() as usize + offset;
        // SAFETY: the range is mapped as long as `memory`, which this region holds; nobody has a Rust reference into
        // it, so that the device may write there.
        let raw = unsafe { (pd.context.library.reg_mr)(pd.raw.as_ptr(), address as *mut c_void, len, flags as c_int) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let context = Arc::clone(&pd.context);
        Ok(Self { raw, alive: true, context, _pd: Arc::clone(pd), memory: Arc::clone(memory) })
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: the region exists as long as `self`.
        unsafe { self.raw.as_ref() }.lkey
    }

    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: the region exists as long as `self`.
        unsafe { self.raw.as_ref() }.rkey
    }
}

impl Channel {
    pub(super) fn new(context: &Arc<Context>) -> io::Result<Self> {
        // SAFETY: the context is open.
        let raw = unsafe { (context.library.create_comp_channel)(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, alive: true, context: Arc::clone(context) };
        channel.context.unblock(channel.raw_fd())?;
        Ok(channel)
    }

    fn raw_fd(&self) -> RawFd {
        // SAFETY: the channel exists as long as `self`.
        unsafe { self.raw.as_ref() }.fd
    }

    /// Readable when an armed queue got a completion.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel, which the borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }
}

/// How one request ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) status: u32,
    pub(super) qpn: u32,
}

impl Cq {
    pub(super) fn new(channel: &Arc<Channel>, entries: u32) -> io::Result<Self> {
        let context = &channel.context;
        // SAFETY: context and channel exist; the queue carries no pointer of ours.
        let raw = unsafe {
            (context.library.create_cq)(context.raw.as_ptr(), entries as c_int, null_mut(), channel.raw.as_ptr(), 0)
        };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, alive: true, context: Arc::clone(context), channel: Arc::clone(channel) })
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// At most 16 completions, given to `each`. Returns how many.
    pub(super) fn poll(&self, mut each: impl FnMut(Ended)) -> io::Result<usize> {
        const BATCH: usize = 16;
        let mut entries = [const { MaybeUninit::<c::ibv_wc>::uninit() }; BATCH];
        // SAFETY: the call writes at most BATCH entries and says how many.
        let count = unsafe { c::ibv_poll_cq(self.raw.as_ptr(), BATCH as i32, entries.as_mut_ptr().cast()) };
        // Below zero it is no errno.
        let count =
            usize::try_from(count).map_err(|_| io::Error::other("the device's driver cannot read the queue"))?;
        for entry in entries.iter().take(count) {
            // SAFETY: the first `count` entries were written.
            let entry = unsafe { entry.assume_init_ref() };
            each(Ended { id: entry.wr_id, status: entry.status, qpn: entry.qp_num });
        }
        Ok(count)
    }

    /// Asks for an event at the next completion.
    pub(super) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue exists as long as `self`. Not "solicited only": that gives no event for an error.
        checked(unsafe { c::ibv_req_notify_cq(self.raw.as_ptr(), 0) })
    }

    /// Takes all events that wait in the channel. Never waits.
    pub(super) fn take_events(&self) {
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel exists and its descriptor does not block; each event is acknowledged once, to the only
        // queue of this channel, this one.
        unsafe {
            while (self.context.library.get_cq_event)(self.channel.raw.as_ptr(), &raw mut cq, &raw mut context) == 0 {
                (self.context.library.ack_cq_events)(cq, 1);
            }
        }
    }
}

/// One READ or WRITE to post.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posting {
    pub(super) id: u64,
    pub(super) read: bool,
    pub(super) inline: bool,
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) lkey: u32,
    pub(super) remote_address: u64,
    pub(super) rkey: u32,
}

/// READs and WRITEs to post in one call.
pub(super) struct Batch {
    // Only what is used is filled: clearing all of it would cost more than the call for one request.
    requests: [MaybeUninit<c::ibv_send_wr>; Self::MOST],
    entries: [MaybeUninit<c::ibv_sge>; Self::MOST],
    len: usize,
}

impl Batch {
    /// Most requests of one batch.
    pub(super) const MOST: usize = 16;

    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            requests: [const { MaybeUninit::uninit() }; Self::MOST],
            entries: [const { MaybeUninit::uninit() }; Self::MOST],
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds one; there must be room.
    pub(super) fn push(&mut self, posting: &Posting) {
        let (request, entry) = (&mut self.requests[self.len], &mut self.entries[self.len]);
        entry.write(c::ibv_sge { addr: posting.address, length: posting.len, lkey: posting.lkey });
        // SAFETY: plain numbers and pointers, for which zero is valid.
        let request = request.write(unsafe { zeroed() });
        request.wr_id = posting.id;
        request.num_sge = 1;
        request.opcode =
            if posting.read { c::ibv_wr_opcode::IBV_WR_RDMA_READ } else { c::ibv_wr_opcode::IBV_WR_RDMA_WRITE };
        request.send_flags = c::ibv_send_flags::IBV_SEND_SIGNALED.0;
        if posting.inline {
            request.send_flags |= c::ibv_send_flags::IBV_SEND_INLINE.0;
        }
        request.wr.rdma = c::rdma_t { remote_addr: posting.remote_address, rkey: posting.rkey };
        self.len += 1;
    }

    /// The first request, with all of them linked; null where there is none. Good until the batch moves or changes.
    fn link(&mut self) -> *mut c::ibv_send_wr {
        let mut next = null_mut();
        for (request, entry) in self.requests.iter_mut().zip(&mut self.entries).take(self.len).rev() {
            // SAFETY: `push` filled the first `len` of both.
            let filled = unsafe { request.assume_init_mut() };
            filled.sg_list = entry.as_mut_ptr();
            filled.next = next;
            next = filled;
        }
        next
    }
}

impl Qp {
    /// Returns the queue pair and the bytes that it takes inline.
    pub(super) fn new(pd: &Arc<Pd>, cq: &Arc<Cq>, send_queue: u32, inline: u32) -> io::Result<(Self, u32)> {
        // SAFETY: plain numbers and pointers, for which zero is valid.
        let mut init: c::ibv_qp_init_attr = unsafe { zeroed() };
        init.send_cq = cq.raw.as_ptr();
        init.recv_cq = cq.raw.as_ptr();
        init.qp_type = c::ibv_qp_type::IBV_QPT_RC;
        init.cap.max_send_wr = send_queue;
        init.cap.max_send_sge = 1;
        init.cap.max_inline_data = inline;
        // SAFETY: domain and queue exist, and are held by the queue pair.
        let raw = unsafe { (pd.context.library.create_qp)(pd.raw.as_ptr(), &raw mut init) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let context = Arc::clone(&pd.context);
        let qp = Self { raw, alive: true, context, _pd: Arc::clone(pd), _cq: Arc::clone(cq) };
        Ok((qp, init.cap.max_inline_data))
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair exists as long as `self`.
        unsafe { self.raw.as_ref() }.qp_num
    }

    /// `set` fills the attributes that `mask` of `ibv_qp_attr_mask` names.
    pub(super) fn modify(&self, mask: u32, set: impl FnOnce(&mut QpAttr)) -> io::Result<()> {
        // SAFETY: plain numbers, for which zero is valid.
        let mut attr: QpAttr = unsafe { zeroed() };
        set(&mut attr);
        // SAFETY: the queue pair exists as long as `self`.
        checked(unsafe { (self.context.library.modify_qp)(self.raw.as_ptr(), &raw mut attr, mask as c_int) })
    }

    /// Its `ibv_qp_state`.
    pub(super) fn state(&self) -> io::Result<u32> {
        // SAFETY: plain numbers and pointers, for which zero is valid.
        let (mut attr, mut init): (QpAttr, c::ibv_qp_init_attr) = unsafe { (zeroed(), zeroed()) };
        let mask = c::ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int;
        // SAFETY: the queue pair exists as long as `self`; the call fills both structs.
        checked(unsafe { (self.context.library.query_qp)(self.raw.as_ptr(), &raw mut attr, mask, &raw mut init) })?;
        Ok(attr.qp_state)
    }

    /// Posts in one call. An error comes with how many were posted before it.
    ///
    /// The caller keeps the regions of the requests registered until these completed, or the queue pair is destroyed.
    pub(super) fn post(&self, batch: &mut Batch) -> Result<(), (usize, io::Error)> {
        let first = batch.link();
        if first.is_null() {
            return Ok(());
        }
        let mut bad = null_mut();
        // SAFETY: the list and its entries live until the call returns, which copies them; the queue pair exists.
        let posted = unsafe { c::ibv_post_send(self.raw.as_ptr(), first, &raw mut bad) };
        checked(posted).map_err(|error| {
            let size = size_of::<c::ibv_send_wr>();
            // A driver that says nothing may have taken all of it: rxe writes requests down first, and rings after.
            let before = (bad as usize).checked_sub(first as usize).map_or(batch.len, |bytes| bytes / size);
            (before.min(batch.len), error)
        })
    }
}

/// A device's name as the file system under /sys has it; None where it could leave its folder.
pub(super) fn plain_name(name: &str) -> Option<CString> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    if plain { CString::new(name).ok() } else { None }
}
