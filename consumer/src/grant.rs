//! What the auth daemon grants is held against what was asked for, before anything is built on it.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::message::Granted;
use overbank_fabric::token::{Rights, Scope};

use crate::error::Error;
use crate::lease_file::Facts;

/// What the token of a fresh or renewed grant comes down to, if it is all that a lease's maker is due.
///
/// # Errors
/// [`Error::MisbehavingAuthd`].
pub(crate) fn check(granted: &Granted, authd: &PublicKey, me: &PublicKey) -> Result<Scope, Error> {
    let odd = |what: &str| Error::MisbehavingAuthd(format!("a grant {what}"));
    let scope = granted.token.verify(authd).map_err(|error| odd(&format!("whose token does not hold ({error})")))?;
    if granted.bytes == 0 || granted.block == 0 {
        return Err(odd("of nothing"));
    }
    if scope.lease != granted.lease || scope.deadline.boot != granted.boot {
        return Err(odd("whose token is for another lease"));
    }
    if scope.holder != *me {
        return Err(odd("whose token is for somebody else"));
    }
    let blocks = granted.bytes.div_ceil(u64::from(granted.block));
    if scope.first_block != 0 || scope.blocks != blocks || scope.rights != Rights::READ_WRITE {
        return Err(odd("whose token is for something else than the lease"));
    }
    Ok(scope)
}

/// Whether a later grant is for the same lease with the same contents.
///
/// # Errors
/// [`Error::MisbehavingAuthd`].
pub(crate) fn check_same(granted: &Granted, facts: &Facts) -> Result<(), Error> {
    let same = granted.lease == facts.lease
        && granted.generation == facts.generation
        && granted.tenant == facts.tenant
        && granted.provider == facts.provider
        && granted.boot == facts.boot
        && granted.bytes == facts.bytes
        && granted.block == facts.block;
    if same { Ok(()) } else { Err(Error::MisbehavingAuthd("a grant that is not for the lease as it was".to_owned())) }
}

#[cfg(test)]
mod tests {
    use overbank_fabric::identity::Identity;
    use overbank_fabric::ids::{BootId, LeaseId};
    use overbank_fabric::time::{Deadline, Tick};
    use overbank_fabric::token::Token;

    use super::*;

    #[test]
    fn a_grant_of_anything_else_is_refused() {
        let (authd, me) = (Identity::generate(), Identity::generate());
        let (lease, boot) = (LeaseId::random(), BootId::random());
        let scope = Scope {
            lease,
            deadline: Deadline { boot, tick: Tick(9) },
            first_block: 0,
            blocks: 2,
            rights: Rights::READ_WRITE,
            holder: me.public(),
        };
        let granted = |scope: &Scope, signer: &Identity| Granted {
            lease,
            generation: 1,
            tenant: "blue".parse().expect("a name"),
            provider: Identity::generate().public(),
            boot,
            bytes: 4097,
            block: 4096,
            left_ms: 1000,
            token: Token::grant(scope, signer),
        };
        let judge = |granted: &Granted| check(granted, &authd.public(), &me.public());
        assert_eq!(judge(&granted(&scope, &authd)).expect("as asked for"), scope);
        assert!(judge(&granted(&scope, &Identity::generate())).is_err());
        for bad in [
            Scope { lease: LeaseId::random(), ..scope },
            Scope { deadline: Deadline { boot: BootId::random(), ..scope.deadline }, ..scope },
            Scope { first_block: 1, ..scope },
            Scope { blocks: 1, ..scope },
            Scope { blocks: 3, ..scope },
            Scope { rights: Rights::READ, ..scope },
            Scope { holder: authd.public(), ..scope },
        ] {
            assert!(judge(&granted(&bad, &authd)).is_err(), "{bad:?}");
        }
        assert!(judge(&Granted { bytes: 0, ..granted(&scope, &authd) }).is_err());
        assert!(judge(&Granted { block: 0, ..granted(&scope, &authd) }).is_err());
        assert!(judge(&Granted { block: 1, ..granted(&scope, &authd) }).is_err());
    }
}
