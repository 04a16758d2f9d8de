//! The systems that are compared: how results call them, and what is not alike about them.

use crate::raw::Kind;

/// Ours, and what other programs and libraries make of the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// Sealed, through the library, on a lease
    #[value(skip)]
    Sealed,
    /// Plain, of the bytes asked for
    #[value(skip)]
    Raw,
    /// Plain, of the bytes that a sealed operation moves
    #[value(skip)]
    RawStride,
    /// Two processes of one machine and the memory that both have, without any device: beside memif
    #[value(skip)]
    SharedMemory,
    /// UCX's get and put, UCX_TLS=tcp,self
    UcxTcp,
    /// libfabric's RMA over TCP by itself
    LibfabricTcp,
    /// libfabric's RMA over tcp;ofi_rxm
    LibfabricTcpRxm,
    /// GET and SET of a redis-server that is started for this
    RedisTcp,
    /// The same over TLS 1.3, AES-256-GCM
    RedisTls,
    /// ib_read_lat, ib_write_lat, ib_read_bw and ib_write_bw, on real devices
    Perftest,
}

/// Those that are not ours.
pub(crate) const PEERS: [System; 6] = [
    System::UcxTcp,
    System::LibfabricTcp,
    System::LibfabricTcpRxm,
    System::RedisTcp,
    System::RedisTls,
    System::Perftest,
];

impl System {
    /// As results call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sealed => "overbank-sealed",
            Self::Raw => "overbank-raw",
            Self::RawStride => "overbank-raw-stride",
            Self::SharedMemory => "shared-memory",
            Self::UcxTcp => "ucx-tcp",
            Self::LibfabricTcp => "libfabric-tcp",
            Self::LibfabricTcpRxm => "libfabric-tcp-rxm",
            Self::RedisTcp => "redis-tcp",
            Self::RedisTls => "redis-tls",
            Self::Perftest => "perftest",
        }
    }

    /// The same in the names of what is measured, which have numbers behind it: words are joined by underscores there.
    pub(crate) fn stem(self) -> String {
        // A plain operation is one, of whichever bytes.
        let system = if self == Self::RawStride { Self::Raw } else { self };
        system.name().replace('-', "_")
    }

    /// Whether anything of it is measured.
    pub(crate) fn has(self, kind: Kind) -> bool {
        match self {
            Self::Raw | Self::Perftest => true,
            _ => kind != Kind::PingPong,
        }
    }

    /// What a reader has to know before dividing a figure of it by one of ours, or one of ours by it.
    pub(crate) fn not_alike(self, kind: Kind, depth: u32) -> String {
        let (read, deep) = (kind == Kind::Read, depth > 1);
        let mut said = Vec::new();
        match self {
            Self::Sealed => {
                said.push("whole blocks are sealed and opened: AES-256-GCM, freshness checked");
                if !read {
                    said.push(
                        "a write of a part of a block reads that block, opens it, and seals and writes all of it",
                    );
                }
                match (read, deep) {
                    (_, false) => {}
                    (true, true) => said.push("of the reads under way at most 16 travel at a time"),
                    (false, true) => said.push("one call of size × depth bytes in one piece, whose blocks the library pipelines; it counts as so many operations, and small ones share blocks"),
                }
            }
            Self::Raw => said.push("the reference of the others: not sealed, no lease"),
            Self::RawStride => {
                said.push("not sealed, no lease, and all the bytes that the sealed operation moves: the difference is sealing, and the library");
            }
            Self::SharedMemory => said.push("no device: a word that is set, and a copy by each end; not sealed"),
            Self::UcxTcp | Self::LibfabricTcp | Self::LibfabricTcpRxm => {
                said.push("TCP, not sealed; both ends are started anew for each turn");
                if self == Self::UcxTcp && !read && deep {
                    said.push(
                        "a put counts as soon as its bytes may be changed, which may be before they have arrived",
                    );
                }
            }
            Self::RedisTcp | Self::RedisTls => {
                said.push("a request by key, which the server parses, looks up and copies; the server sleeps where nothing has come, ours polls; a connection and its values are kept over all turns");
                if self == Self::RedisTls {
                    said.push("TLS protects the way alone: the server has the bytes in the clear, and any number of operations share a record");
                }
            }
            Self::Perftest => {
                said.push("not sealed, no lease, bytes not checked, both ends started anew for each turn");
                match (kind, deep) {
                    (Kind::PingPong, _) => {}
                    (_, true) => {
                        said.push("a number of operations without warm-up in place of a time, all in one buffer")
                    }
                    (_, false) => {}
                }
            }
        }
        if kind == Kind::PingPong {
            said.push("a WRITE each way, seen in memory: p50_us is the round trip; perftest itself says half of it");
        }
        said.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn peers_are_asked_for_by_the_names_that_results_have() {
        let values: Vec<_> = System::value_variants().iter().filter_map(System::to_possible_value).collect();
        let names: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
        assert_eq!(names, PEERS.map(System::name));
    }

    #[test]
    fn everybody_says_what_is_not_alike() {
        for system in PEERS.into_iter().chain([System::Sealed, System::Raw, System::RawStride]) {
            for kind in [Kind::Read, Kind::Write, Kind::PingPong].into_iter().filter(|kind| system.has(*kind)) {
                assert!(!system.not_alike(kind, 1).is_empty() && !system.not_alike(kind, 16).is_empty(), "{system:?}");
            }
        }
        assert!(System::UcxTcp.not_alike(Kind::Write, 2).contains("may be changed"));
        assert!(!System::UcxTcp.not_alike(Kind::Write, 1).contains("may be changed"));
        assert!(System::Perftest.not_alike(Kind::PingPong, 1).contains("half"));
        assert!(System::Sealed.not_alike(Kind::Write, 2).contains("one call"));
        assert!(!System::Sealed.not_alike(Kind::Read, 2).contains("one call"));
    }
}
