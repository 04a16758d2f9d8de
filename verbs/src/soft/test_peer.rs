//! A peer made of bytes: says to one queue pair of an engine exactly what a test wants, and reads what it answers. Its
//! packets are put together here, not by the code under test.

use std::sync::Arc;

use super::engine::{CqHandle, Engine, EngineError, EngineRequest, MrHandle, Now, PdHandle, Qpn};
use super::icrc::Icrc;
use super::port_sim::address;
use super::psn::Psn;
use super::sim_tests::pattern;
use super::wire::{Bth, Opcode, Packet};
use crate::{Access, Backing, Completion, Endpoint, Memory, Mtu, Op, QpCaps, QpState, Retry};

pub(super) const MEMORY: usize = 1 << 16;
/// PSNs of the first packet in each direction: theirs wraps soon.
const FIRST_PSN: u32 = 0x00ff_fffe;

/// The engine is host 0, the peer host 1.
pub(super) struct Peer {
    pub(super) engine: Engine,
    pub(super) now: u64,
    pub(super) pd: PdHandle,
    pub(super) cq: CqHandle,
    pub(super) qpn: Qpn,
    pub(super) mr: MrHandle,
    pub(super) memory: Arc<Memory>,
    /// The engine's first PSN.
    pub(super) engine_psn: u32,
    /// The peer's next request.
    pub(super) psn: u32,
    icrc: Icrc,
    check: Icrc,
}

/// What the engine sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) opcode: Opcode,
    pub(super) psn: u32,
    pub(super) ack_request: bool,
    /// Syndrome and MSN.
    pub(super) aeth: Option<(u8, u32)>,
    /// Address, rkey and length.
    pub(super) reth: Option<(u64, u32, u32)>,
    pub(super) data: Vec<u8>,
}

/// A packet to be sent: what a test does not set is as it should be.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) pkey: u16,
    /// With the reserved byte.
    pub(super) qpn: u32,
    pub(super) ack_request: bool,
    pub(super) psn: u32,
    pub(super) extension: Vec<u8>,
    pub(super) data: Vec<u8>,
}

impl Draft {
    /// Without its ICRC.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let pad = self.data.len().wrapping_neg() & 3;
        let mut bytes = vec![self.opcode, self.flags | (pad as u8) << 4];
        bytes.extend(self.pkey.to_be_bytes());
        bytes.extend(self.qpn.to_be_bytes());
        bytes.extend((u32::from(self.ack_request) << 31 | self.psn & 0x00ff_ffff).to_be_bytes());
        bytes.extend(&self.extension);
        bytes.extend(&self.data);
        bytes.extend(&[0; 3][..pad]);
        bytes
    }
}

pub(super) fn reth(address: u64, rkey: u32, len: u32) -> Vec<u8> {
    let mut bytes = address.to_be_bytes().to_vec();
    bytes.extend(rkey.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

impl Peer {
    pub(super) fn new(mtu: Mtu) -> Self {
        Self::with(mtu, Access::all(), Retry { timeout: std::time::Duration::from_millis(1), count: 3 })
    }

    /// The engine gives the peer these rights.
    pub(super) fn with(mtu: Mtu, rights: Access, retry: Retry) -> Self {
        Self::of_kind(Endpoint::SOFT, mtu, rights, retry)
    }

    /// With these flags in its endpoint.
    pub(super) fn of_kind(flags: u8, mtu: Mtu, rights: Access, retry: Retry) -> Self {
        let mut engine = Engine::new(address(0), Mtu::Mtu8192);
        let memory = Arc::new(Memory::map(MEMORY, Backing::Ordinary).unwrap());
        memory.copy_in(0, &pattern(1, MEMORY)).unwrap();
        let pd = engine.alloc_pd();
        let cq = engine.create_cq(256).unwrap();
        let qpn = engine.create_qp(pd, cq, QpCaps { send_queue: 128, outstanding_reads: 4 }).unwrap();
        let mr = engine.register(pd, Arc::clone(&memory), 0..MEMORY, Access::all()).unwrap();
        let endpoint = Endpoint {
            lid: 0,
            flags,
            mtu,
            qpn: 0x0077_0077,
            psn: FIRST_PSN,
            port: 4791,
            gid: Endpoint::gid_of(address(1).ip()),
        };
        engine.connect(Now(0), qpn, &endpoint, rights, retry).unwrap();
        let engine_psn = engine.endpoint(qpn).unwrap().psn;
        let (icrc, check) = (Icrc::new(address(1), address(0)), Icrc::new(address(0), address(1)));
        Self { engine, now: 0, pd, cq, qpn, mr, memory, engine_psn, psn: FIRST_PSN, icrc, check }
    }

    pub(super) fn va(&self) -> u64 {
        self.memory.address()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        self.memory.copy_out(0, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn state(&self) -> QpState {
        self.engine.state(self.qpn)
    }

    /// The next request of the peer, with an acknowledgement asked for.
    pub(super) fn draft(&mut self, opcode: Opcode, extension: Vec<u8>, data: &[u8]) -> Draft {
        let psn = self.psn;
        self.psn = (self.psn + 1) & 0x00ff_ffff;
        self.draft_at(psn, opcode, extension, data)
    }

    pub(super) fn draft_at(&self, psn: u32, opcode: Opcode, extension: Vec<u8>, data: &[u8]) -> Draft {
        Draft {
            opcode: opcode.0,
            flags: 0x40,
            pkey: 0xffff,
            qpn: self.qpn.0,
            ack_request: true,
            psn,
            extension,
            data: data.to_vec(),
        }
    }

    /// With its ICRC.
    pub(super) fn seal(&self, bytes: &[u8]) -> Vec<u8> {
        let mut sealed = bytes.to_vec();
        sealed.extend(self.icrc.of(bytes).to_le_bytes());
        sealed
    }

    /// Hands the draft over, without asking for answers.
    pub(super) fn say(&mut self, draft: &Draft) {
        let bytes = self.seal(&draft.bytes());
        self.engine.receive(Now(self.now), address(1), &bytes);
    }

    /// Hands the draft over and returns all answers.
    pub(super) fn ask(&mut self, draft: &Draft) -> Vec<Answer> {
        self.say(draft);
        self.answers()
    }

    /// A WRITE ONLY at this offset of the region.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Answer> {
        let reth = reth(self.va() + offset, self.mr.rkey, data.len() as u32);
        let draft = self.draft(Opcode::WRITE_ONLY, reth, data);
        self.ask(&draft)
    }

    /// A READ request at this offset of the region; `packets` of the sequence are taken.
    pub(super) fn read_draft(&mut self, offset: u64, len: u32, packets: u32) -> Draft {
        let reth = reth(self.va() + offset, self.mr.rkey, len);
        let draft = self.draft(Opcode::READ_REQUEST, reth, &[]);
        self.psn = (draft.psn + packets) & 0x00ff_ffff;
        draft
    }

    /// An acknowledgement of one of the engine's requests, counted from its first.
    pub(super) fn acknowledge(&mut self, request: u32, syndrome: u8) -> Vec<Answer> {
        let aeth = vec![syndrome, 0, 0, 0];
        let draft = self.draft_at(self.engine_psn.wrapping_add(request), Opcode::ACKNOWLEDGE, aeth, &[]);
        self.ask(&draft)
    }

    /// A READ response.
    pub(super) fn respond(&mut self, request: u32, opcode: Opcode, data: &[u8]) -> Vec<Answer> {
        let aeth = if opcode == Opcode::READ_RESPONSE_MIDDLE { vec![] } else { vec![0x1f, 0, 0, 0] };
        let draft = self.draft_at(self.engine_psn.wrapping_add(request), opcode, aeth, data);
        self.ask(&draft)
    }

    pub(super) fn request(&self, id: u64, op: Op, offset: usize, len: usize) -> EngineRequest {
        EngineRequest { id, op, mr: self.mr, offset, len, remote_address: 0x7000_0000_0000, rkey: 0xbeef }
    }

    /// Posts and returns what is sent.
    pub(super) fn post(&mut self, batch: &[EngineRequest]) -> Result<Vec<Answer>, EngineError> {
        self.engine.post(Now(self.now), self.qpn, batch)?;
        Ok(self.answers())
    }

    pub(super) fn poll(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.engine.poll_cq(self.cq, usize::MAX, &mut completions).unwrap();
        completions
    }

    /// Everything that the engine has to send.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.answer()).collect()
    }

    /// The next packet that the engine has to send.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        let mut bytes = Vec::new();
        let transmit = self.engine.poll_transmit(Now(self.now), &mut bytes)?;
        assert_eq!((transmit.to, transmit.len), (address(1), bytes.len()));
        let packet = Packet::new(&bytes).unwrap();
        let (covered, icrc) = packet.split_icrc();
        assert_eq!(self.check.of(covered), icrc);
        let Bth { opcode, solicited, migrated, pad, version, pkey, qpn, ack_request, psn } = packet.bth;
        assert_eq!((solicited, migrated, version, pkey, qpn), (false, true, 0, 0xffff, 0x0077_0077));
        let body = packet.body().unwrap();
        assert_eq!(usize::from(pad), body.data.len().wrapping_neg() & 3);
        Some(Answer {
            opcode,
            psn: psn.get(),
            ack_request,
            aeth: body.aeth.map(|aeth| (aeth.syndrome.0, aeth.msn)),
            reth: body.reth.map(|reth| (reth.address, reth.rkey, reth.len)),
            data: body.data.to_vec(),
        })
    }

    /// How far the answer's PSN is from the engine's first request.
    pub(super) fn request_of(&self, answer: &Answer) -> u32 {
        Psn::new(answer.psn.wrapping_sub(self.engine_psn)).get()
    }
}

/// The answer to a request of the peer's: an ACK or NAK.
pub(super) fn acknowledgement(psn: u32, syndrome: u8, msn: u32) -> Answer {
    Answer {
        opcode: Opcode::ACKNOWLEDGE,
        psn: psn & 0x00ff_ffff,
        ack_request: false,
        aeth: Some((syndrome, msn)),
        reth: None,
        data: Vec::new(),
    }
}
