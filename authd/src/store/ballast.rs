//! A file beside the database that keeps some of the disk back: where the disk is full it makes way, so that what ends
//! things can still be written down.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

/// Bytes kept back: the database's write-ahead log takes 4 MiB of them, and the rest holds some 20,000 ends with their
/// records.
const BYTES: u64 = 16 << 20;
/// It is made again where the disk has room for two, and looked for after this long.
const LOOK: Duration = Duration::from_secs(2);

/// The file, there or not.
pub(super) struct Ballast {
    path: PathBuf,
    there: bool,
    looked: Option<Instant>,
}

impl Ballast {
    /// Makes it, where there is room; see [`Ballast::is_there`].
    pub(super) fn new(path: PathBuf) -> Self {
        let mut ballast = Self { path, there: false, looked: None };
        ballast.look();
        ballast
    }

    /// Whether that much of the disk is kept back.
    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    /// Makes way. Whether there is more room by that.
    pub(super) fn make_way(&mut self) -> bool {
        let made = std::mem::take(&mut self.there) && fs::remove_file(&self.path).is_ok();
        self.looked = Some(Instant::now());
        made
    }

    /// Makes it again, where the disk has room and some time has passed. Whether it is there now.
    pub(super) fn look_again(&mut self) -> bool {
        if !self.there && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.look();
        }
        self.there
    }

    fn look(&mut self) {
        self.looked = Some(Instant::now());
        match self.make() {
            Ok(()) => self.there = true,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "no room is kept back on the disk: nothing is granted");
                // What was made of it would take the room that others need.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        if file.metadata()?.len() >= BYTES {
            return Ok(());
        }
        let disk = statvfs(self.path.as_path())?;
        if disk.blocks_available().saturating_mul(disk.fragment_size()) < 2 * BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        posix_fallocate(&file, 0, BYTES as i64)?;
        file.sync_all()
    }
}
