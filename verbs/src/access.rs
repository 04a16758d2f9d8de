//! What a region or a queue pair allows.

bitflags::bitflags! {
    /// Exactly what is allowed; nothing is implied.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// The device may write here for this side's own requests: a READ needs it of its target.
        const LOCAL_WRITE = 1;
        /// A peer may read.
        const REMOTE_READ = 2;
        /// A peer may write.
        const REMOTE_WRITE = 4;
    }
}
