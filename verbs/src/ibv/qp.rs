//! Queue pairs of an `ibv` device.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use rdma_sys::{ibv_mtu, ibv_qp_attr_mask as Mask, ibv_qp_state as state};

use super::cq::IbvCq;
use super::device::{IbvDevice, limit, refused};
use super::mr::IbvMr;
use super::pd::flags;
use super::sys::{Batch, Pd, Posting, Qp, QpAttr};
use crate::endpoint::ROCE_PORT;
use crate::{Access, Endpoint, Op, QpCaps, QpState, Retry, VerbsError, WorkRequest};

/// How long the end of a queue pair waits for the device to flush what was posted.
const FLUSH: Duration = Duration::from_millis(500);
/// rxe takes a retry count of 7 for "for ever".
const RETRIES: u8 = 6;
/// Inline costs a copy and saves the device a read of host memory; beyond this the copy costs more.
const INLINE: u32 = 128;

/// Not connected: nothing may be posted. Devices differ in what they do with it, and rxe carries it out later.
const FRESH: u8 = 0;
const CONNECTED: u8 = 1;
/// In the error state without ever having been connected: what is posted is flushed here.
const STOPPED: u8 = 2;

pub(crate) struct IbvQp {
    device: Arc<IbvDevice>,
    pd: Arc<Pd>,
    cq: Arc<IbvCq>,
    qp: Qp,
    inline: u32,
    caps: QpCaps,
    endpoint: Endpoint,
    /// Of its ledger in the completion queue.
    key: u64,
    /// Whether the device is given requests: only between the connection and the end.
    phase: AtomicU8,
    exists: bool,
}

impl IbvQp {
    pub(super) fn new(
        device: &Arc<IbvDevice>,
        pd: &Arc<Pd>,
        cq: &Arc<IbvCq>,
        caps: QpCaps,
    ) -> Result<Self, VerbsError> {
        if !Arc::ptr_eq(device, &cq.device) {
            return Err(VerbsError::Foreign { what: "completion queue", owner: "device" });
        }
        limit("length of a send queue", caps.send_queue, 1, device.limits.send_queue)?;
        limit("outstanding READs", caps.outstanding_reads.into(), 0, device.limits.outstanding_reads.into())?;
        let (qp, inline) = Qp::new(pd, &cq.cq, caps.send_queue as u32, INLINE)
            .or_else(|_| Qp::new(pd, &cq.cq, caps.send_queue as u32, 0))
            .map_err(|source| refused("ibv_create_qp", source))?;
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| VerbsError::System { call: "getrandom", source: error.into() })?;
        let endpoint = Endpoint {
            flags: 0,
            mtu: device.mtu,
            qpn: qp.number(),
            psn: u32::from_le_bytes(random) & 0xff_ffff,
            port: ROCE_PORT,
            lid: if device.infiniband() { device.lid } else { 0 },
            gid: device.gid.raw,
        };
        let key = cq.lock().open(endpoint.qpn, caps.send_queue);
        let (device, pd, cq) = (Arc::clone(device), Arc::clone(pd), Arc::clone(cq));
        let phase = AtomicU8::new(FRESH);
        Ok(Self { device, pd, cq, qp, inline, caps, endpoint, key, phase, exists: true })
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// RESET, INIT, ready to receive, ready to send (InfiniBand specification, volume 1, 10.3.1).
    pub(crate) fn connect(&self, remote: &Endpoint, rights: Access, retry: Retry) -> Result<(), VerbsError> {
        let now = self.state();
        if now != QpState::Reset {
            return Err(VerbsError::State { what: "connect", state: now });
        }
        let device = &self.device;
        let unreachable = |reason| {
            let (peer, local) = (remote.socket_addr(), SocketAddr::new(device.gid.address(), ROCE_PORT));
            Err(VerbsError::Unreachable { peer, local, reason })
        };
        if !device.infiniband() && remote.port != ROCE_PORT {
            return unreachable("a real RDMA device sends to UDP port 4791 only; give the soft device that port");
        }
        if device.infiniband() != (remote.lid != 0) {
            return unreachable("one of them is on InfiniBand and the other on Ethernet");
        }
        let step = |from, to, attributes, mask: u32, set: &dyn Fn(&mut QpAttr)| {
            self.qp.modify(mask, set).map_err(|source| VerbsError::Transition {
                from,
                to,
                attributes,
                likely: likely(to, &source),
                source,
            })
        };
        step(
            QpState::Reset,
            QpState::Init,
            format!("port {}, P_Key index 0, rights {rights:?}", device.port),
            (Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS).0,
            &|attr| {
                attr.qp_state = state::IBV_QPS_INIT;
                attr.pkey_index = 0;
                attr.port_num = device.port;
                attr.qp_access_flags = flags(rights);
            },
        )?;
        let mtu = self.endpoint.mtu.min(remote.mtu);
        step(
            QpState::Init,
            QpState::ReadyToReceive,
            format!(
                "peer {}, QPN {}, path MTU {}, local GID {}",
                remote.socket_addr().ip(),
                remote.qpn,
                mtu.bytes(),
                device.gid
            ),
            (Mask::IBV_QP_STATE
                | Mask::IBV_QP_AV
                | Mask::IBV_QP_PATH_MTU
                | Mask::IBV_QP_DEST_QPN
                | Mask::IBV_QP_RQ_PSN
                | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | Mask::IBV_QP_MIN_RNR_TIMER)
                .0,
            &|attr| {
                attr.qp_state = state::IBV_QPS_RTR;
                attr.path_mtu = mtu as ibv_mtu::Type;
                attr.dest_qp_num = remote.qpn;
                attr.rq_psn = remote.psn;
                attr.max_dest_rd_atomic = self.caps.outstanding_reads;
                attr.min_rnr_timer = 12;
                attr.ah_attr.is_global = 1;
                attr.ah_attr.port_num = device.port;
                attr.ah_attr.dlid = remote.lid;
                attr.ah_attr.grh.dgid.raw = remote.gid;
                attr.ah_attr.grh.sgid_index = device.gid.index;
                attr.ah_attr.grh.hop_limit = 64;
            },
        )?;
        let (timeout, count) = patience(retry);
        step(
            QpState::ReadyToReceive,
            QpState::ReadyToSend,
            format!("timeout {:?}, {} retries, {} READs", retry.timeout, retry.count, self.caps.outstanding_reads),
            (Mask::IBV_QP_STATE
                | Mask::IBV_QP_TIMEOUT
                | Mask::IBV_QP_RETRY_CNT
                | Mask::IBV_QP_RNR_RETRY
                | Mask::IBV_QP_SQ_PSN
                | Mask::IBV_QP_MAX_QP_RD_ATOMIC)
                .0,
            &|attr| {
                attr.qp_state = state::IBV_QPS_RTS;
                attr.timeout = timeout;
                attr.retry_cnt = count;
                // READ and WRITE meet no receiver that is not ready; and rxe locks up with 7, "for ever".
                attr.rnr_retry = 0;
                attr.sq_psn = self.endpoint.psn;
                attr.max_rd_atomic = self.caps.outstanding_reads;
            },
        )?;
        if self.phase.compare_exchange(FRESH, CONNECTED, AcqRel, Acquire).is_err() {
            self.to_error()?;
            return Err(VerbsError::State { what: "connect", state: QpState::Error });
        }
        Ok(())
    }

    pub(crate) fn state(&self) -> QpState {
        if self.phase.load(Acquire) == STOPPED {
            return QpState::Error;
        }
        match self.qp.state() {
            Ok(state::IBV_QPS_RESET) => QpState::Reset,
            Ok(state::IBV_QPS_INIT) => QpState::Init,
            Ok(state::IBV_QPS_RTR) => QpState::ReadyToReceive,
            Ok(state::IBV_QPS_RTS) => QpState::ReadyToSend,
            _ => QpState::Error,
        }
    }

    pub(crate) fn post<'a>(
        &self,
        batch: impl Iterator<Item = (WorkRequest<'a>, &'a IbvMr)> + Clone,
    ) -> Result<(), VerbsError> {
        let mut count = 0;
        for (request, mr) in batch.clone() {
            count += 1;
            // Inline bytes are taken without a look at the region, and devices disagree on the rest.
            if !Arc::ptr_eq(&mr.pd, &self.pd) {
                return Err(VerbsError::Foreign { what: "memory region", owner: "protection domain" });
            }
            if request.op == Op::Read && self.caps.outstanding_reads == 0 {
                return Err(VerbsError::Limit { what: "READs of this queue pair", value: 1, min: 0, max: 0 });
            }
            if request.op == Op::Read && !mr.access.contains(Access::LOCAL_WRITE) {
                return Err(VerbsError::Rights { has: mr.access, needs: Access::LOCAL_WRITE });
            }
        }
        let mut state = self.cq.lock();
        let Some(ledger) = state.ledger(self.key) else { return Err(VerbsError::Gone { what: "queue pair" }) };
        let (capacity, held) = (self.caps.send_queue, ledger.posted.len() + ledger.refused.len());
        if held + count > capacity {
            return Err(VerbsError::QueueFull { what: "send queue", asked: count, free: capacity - held, capacity });
        }
        let phase = self.phase.load(Acquire);
        if phase == FRESH {
            return Err(VerbsError::State { what: "post", state: self.state() });
        }
        let (what, capacity) = ("completion queue", self.cq.entries());
        state.promise(count, capacity).map_err(|free| VerbsError::QueueFull { what, asked: count, free, capacity })?;
        if phase == STOPPED {
            batch.for_each(|(request, _)| state.flush((request.id, request.op), self.endpoint.qpn));
            return Ok(());
        }
        let Some(ledger) = state.ledger(self.key) else { return Ok(()) };
        let mut rest = batch;
        let mut first = true;
        loop {
            let mut batch = Batch::new();
            for (request, mr) in rest.by_ref().take(Batch::MOST) {
                let read = request.op == Op::Read;
                batch.push(&Posting {
                    id: request.id,
                    read,
                    inline: !read && request.len <= self.inline as usize,
                    address: mr.address + request.offset as u64,
                    len: request.len as u32,
                    lkey: mr.mr.lkey(),
                    remote_address: request.remote_address,
                    rkey: request.rkey,
                });
                ledger.posted.push_back((request.id, request.op));
            }
            let filled = batch.len();
            if filled == 0 {
                return Ok(());
            }
            if let Err((posted, source)) = self.qp.post(&mut batch) {
                let first_unposted = ledger.posted.len() - (filled - posted);
                if first && posted == 0 {
                    ledger.posted.truncate(first_unposted);
                    state.unpromise(count);
                    return Err(VerbsError::System { call: "ibv_post_send", source });
                }
                // Part of it is posted and cannot be taken back: the rest fails the same way, by a flush, after it.
                tracing::error!(%source, "the device took part of a batch; the queue pair goes to ERROR");
                ledger.refused.extend(ledger.posted.drain(first_unposted..));
                ledger.refused.extend(rest.map(|(request, _)| (request.id, request.op)));
                state.settle(self.key);
                drop(state);
                if let Err(error) = self.to_error() {
                    tracing::error!(%error, "the queue pair cannot be stopped; it ends when it is destroyed");
                }
                return Ok(());
            }
            first = false;
        }
    }

    pub(crate) fn set_error(&self) -> Result<(), VerbsError> {
        // The kernel refuses to move a queue pair from RESET to ERROR, where there is nothing to stop.
        let fresh = self.phase.compare_exchange(FRESH, STOPPED, AcqRel, Acquire).is_ok();
        if fresh && matches!(self.qp.state(), Ok(state::IBV_QPS_RESET)) {
            return Ok(());
        }
        self.to_error()
    }

    fn to_error(&self) -> Result<(), VerbsError> {
        self.qp
            .modify(Mask::IBV_QP_STATE.0, |attr| attr.qp_state = state::IBV_QPS_ERR)
            .map_err(|source| VerbsError::System { call: "ibv_modify_qp to ERROR", source })
    }

    pub(crate) fn destroy(mut self) -> Result<(), VerbsError> {
        self.end()
    }

    /// ERROR, then what the device flushes is taken while it still can be, then it is destroyed, then what is missing
    /// is flushed in the device's stead.
    fn end(&mut self) -> Result<(), VerbsError> {
        self.exists = false;
        let ended = |error| VerbsError::System { call: "ibv_destroy_qp", source: error };
        // With nothing under way there is nothing to take, and nobody needs to wait for this one.
        let idle = {
            let mut state = self.cq.lock();
            let idle =
                state.ledger(self.key).is_none_or(|ledger| ledger.posted.is_empty() && ledger.refused.is_empty());
            if idle {
                state.close(self.key);
            }
            idle
        };
        if idle {
            return self.qp.end().map_err(ended);
        }
        let stopped = self.stop();
        // Under the lock, so that what still lies in the queue is not taken for a later queue pair's of the same number.
        let mut state = self.cq.lock();
        self.qp.end().map_err(ended)?;
        let taken = state.take(&self.cq.cq, usize::MAX);
        state.close(self.key);
        // It is destroyed, so nothing depends on this any more.
        if let Err(error) = stopped.and(taken) {
            tracing::warn!(%error, "a queue pair was destroyed without its last completions");
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), VerbsError> {
        let until = Instant::now() + FLUSH;
        let under_way = || self.cq.lock().ledger(self.key).is_some_and(|ledger| !ledger.posted.is_empty());
        if under_way() {
            self.to_error()?;
            while under_way() && Instant::now() < until {
                self.cq.lock().take(&self.cq.cq, usize::MAX)?;
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

impl Drop for IbvQp {
    fn drop(&mut self) {
        if self.exists
            && let Err(error) = self.end()
        {
            tracing::error!(%error, "a queue pair was dropped and could not be destroyed");
        }
    }
}

/// The local ACK timeout that is at least `timeout`: 4.096 µs × 2^code (InfiniBand specification, 9.7.6.1.3).
fn timeout_code(timeout: Duration) -> u8 {
    (1..=31).find(|code| Duration::from_nanos(4096 << code) >= timeout).unwrap_or(31)
}

/// The timeout's code and the retry count with which a silent peer is given up no sooner than `retry` asks: where that
/// is more sendings than the device counts, each waits longer.
fn patience(retry: Retry) -> (u8, u8) {
    let count = retry.count.min(RETRIES);
    let sendings = |count: u8| u32::from(count) + 1;
    (timeout_code(retry.timeout.saturating_mul(sendings(retry.count)) / sendings(count)), count)
}

/// What most often stands behind a refused transition.
fn likely(to: QpState, error: &io::Error) -> &'static str {
    match (to, error.raw_os_error()) {
        (_, Some(libc::ENOMEM)) => "the limit on locked memory is too low (ulimit -l unlimited)",
        (_, Some(libc::EPERM | libc::EACCES)) => "this user may not use the device",
        (QpState::ReadyToReceive, Some(libc::EINVAL)) => {
            "the path MTU is above the port's, or the local GID's kind or address family does not match the peer's"
        }
        (QpState::ReadyToReceive, Some(libc::ETIMEDOUT)) => "nobody answers for the peer's address (ARP)",
        (QpState::ReadyToReceive, Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            "there is no route from the local GID's interface to the peer"
        }
        (QpState::ReadyToReceive, Some(libc::ENODEV)) => "the local GID is gone: its interface lost the address",
        (QpState::ReadyToSend, Some(libc::EINVAL)) => "more READs at once, or a longer timeout, than the device takes",
        _ => "the device's driver refused; the kernel's log may say more (dmesg)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up_to_what_the_device_can_count() {
        assert_eq!(timeout_code(Duration::ZERO), 1);
        assert_eq!(timeout_code(Duration::from_nanos(8192)), 1);
        assert_eq!(timeout_code(Duration::from_nanos(8193)), 2);
        assert_eq!(timeout_code(Duration::from_millis(16)), 12);
        assert_eq!(timeout_code(Duration::from_secs(1 << 40)), 31);
    }

    #[test]
    fn more_sendings_than_the_device_counts_are_fewer_and_longer_ones() {
        let patience = |ms, count| patience(Retry { timeout: Duration::from_millis(ms), count });
        assert_eq!(patience(16, 3), (12, 3));
        assert_eq!(patience(16, 6), (12, 6));
        // 7 sendings of 268 ms, for 16 of 100 ms.
        assert_eq!(patience(100, 15), (16, 6));
        assert_eq!(patience(u64::MAX, 255), (31, 6));
    }
}
