//! Where a packet is written before it is sent: behind others in a vector, or in place in a buffer of the port's.

use crate::Memory;

/// The memory is not as large as its region says, or the packet has no room.
#[derive(Debug)]
pub(crate) struct OutOfMemory;

/// Bytes that only grow, until they are sent.
pub(crate) trait Out {
    /// Bytes so far.
    fn len(&self) -> usize;
    /// Takes back what came after the first `len`.
    fn truncate(&mut self, len: usize);
    /// Appends these; all or none.
    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfMemory>;
    /// Appends bytes that a peer may be changing; all or none.
    fn append_memory(&mut self, memory: &Memory, offset: usize, len: usize) -> Result<(), OutOfMemory>;
    /// What was written from there on.
    fn since(&self, start: usize) -> &[u8];
}

impl Out for Vec<u8> {
    fn len(&self) -> usize {
        self.len()
    }

    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfMemory> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn append_memory(&mut self, memory: &Memory, offset: usize, len: usize) -> Result<(), OutOfMemory> {
        memory.append_to(offset, len, self).map_err(|_| OutOfMemory)
    }

    fn since(&self, start: usize) -> &[u8] {
        &self[start..]
    }
}
