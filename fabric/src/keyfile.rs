//! The file that holds an identity: mode 0600, refused otherwise.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]
use crate::identity::Identity;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("stub")]
    Stub,
}
pub fn load(path: &Path) -> Result<Identity, KeyFileError> {
    unimplemented!()
}
/// Refuses to overwrite.
pub fn create(path: &Path) -> Result<Identity, KeyFileError> {
    unimplemented!()
}
/// The bool: whether it was made now.
pub fn load_or_create(path: &Path) -> Result<(Identity, bool), KeyFileError> {
    unimplemented!()
}
