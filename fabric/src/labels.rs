//! Every domain-separation label: what is signed or derived for one purpose is of no use for another.
//!
//! A label ends in its version; a changed construction gets a new label, never a changed meaning.

/// Prologue of the handshake: parties that speak another protocol or version fail at the first message.
pub const HANDSHAKE_PROLOGUE: &[u8] = b"overbank handshake v1";
/// Identity proof inside the handshake.
pub const HANDSHAKE_PROOF: &[u8] = b"overbank identity proof v1";
/// Fingerprint of a public key.
pub const FINGERPRINT: &[u8] = b"overbank fingerprint v1";
/// One block of a capability token.
pub const TOKEN: &[u8] = b"overbank token v1";
/// Hash of a whole token, as an attach request names it.
pub const TOKEN_HASH: &[u8] = b"overbank token hash v1";
/// A consumer's attach request.
pub const ATTACH_REQUEST: &[u8] = b"overbank attach request v1";
/// A provider's answer to an attach request.
pub const ATTACH_ANSWER: &[u8] = b"overbank attach answer v1";
/// A provider's erasure receipt.
pub const RECEIPT: &[u8] = b"overbank erasure receipt v1";
/// Derivation of a block key from the lease key.
pub const BLOCK_KEY: &[u8] = b"overbank block key v1";
/// Associated data of a sealed block.
pub const BLOCK_AAD: &[u8] = b"overbank block v1";
/// Derivation of the key that authenticates a saved freshness table.
pub const FRESHNESS: &[u8] = b"overbank freshness v1";
/// Hash of a one-time invitation's secret, as the auth daemon keeps it.
pub const INVITATION: &[u8] = b"overbank invitation v1";
/// A share bundle, as who shares signs it.
pub const SHARE: &[u8] = b"overbank share v1";
/// Sealing of the lease key in a share bundle.
pub const SHARE_KEY: &[u8] = b"overbank share key v1";
/// The hash before the first record of an audit log.
pub const AUDIT_GENESIS: &[u8] = b"overbank audit genesis v1";
/// One link of an audit log's chain.
pub const AUDIT_RECORD: &[u8] = b"overbank audit record v1";
/// The auth daemon's signature under its audit log.
pub const AUDIT_CHECKPOINT: &[u8] = b"overbank audit checkpoint v1";
/// An identity's word, to one auth daemon, that another key takes over from it.
pub const HANDOVER: &[u8] = b"overbank handover v1";
/// The auth daemon's word that another key takes over from it.
pub const SUCCESSION: &[u8] = b"overbank succession v1";
/// An operator's approval of what takes more than one.
pub const APPROVAL: &[u8] = b"overbank approval v1";
