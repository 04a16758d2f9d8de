use super::*;
use crate::time::{Deadline, Tick};
use crate::token::Rights;

struct Scene {
    authd: Identity,
    alice: Identity,
    bob: Identity,
    facts: ShareFacts,
    key: LeaseKey,
}

fn scene() -> Scene {
    let (authd, alice, bob) = (Identity::generate(), Identity::generate(), Identity::generate());
    let (lease, boot) = (LeaseId([1; 16]), BootId([2; 16]));
    let deadline = Deadline { boot, tick: Tick(1000) };
    let whole =
        Scope { lease, deadline, first_block: 0, blocks: 16, rights: Rights::READ_WRITE, holder: alice.public() };
    let part = Scope { first_block: 4, blocks: 2, rights: Rights::READ, holder: bob.public(), ..whole };
    let token = Token::grant(&whole, &authd).narrow(&authd.public(), &part, &alice).expect("narrower");
    let facts = ShareFacts {
        to: bob.public(),
        lease,
        generation: 1,
        tenant: "blue".parse().expect("a name"),
        authd: authd.public(),
        provider: Identity::generate().public(),
        boot,
        bytes: 16 * 4096 - 1,
        block: 4096,
        token,
    };
    Scene { authd, alice, bob, facts, key: LeaseKey::from_bytes([7; 32]) }
}

impl Scene {
    fn share(&self) -> Vec<u8> {
        seal(&self.facts, &self.key, &self.alice).expect("shared")
    }
}

fn refused(bytes: &[u8], me: &Identity) -> ShareError {
    open(bytes, me).err().expect("refused")
}

#[test]
fn who_it_is_for_opens_it_and_nobody_else() {
    let scene = scene();
    let bytes = scene.share();
    let opened = open(&bytes, &scene.bob).expect("for bob");
    assert_eq!((opened.from, &opened.facts), (scene.alice.public(), &scene.facts));
    assert_eq!((opened.scope.first_block, opened.scope.rights), (4, Rights::READ));
    assert_eq!(opened.key.bytes(), &[7; 32]);
    for other in [&scene.alice, &scene.authd] {
        assert!(matches!(refused(&bytes, other), ShareError::NotForMe { .. }));
    }
    assert!(!bytes.windows(8).any(|window| window == [7; 8]), "the lease key is not in the clear");
    assert_ne!(bytes, scene.share(), "a fresh key for each");
}

#[test]
fn no_byte_can_be_changed_cut_or_added() {
    let scene = scene();
    let bytes = scene.share();
    for cut in 0..bytes.len() {
        assert!(open(&bytes[..cut], &scene.bob).is_err(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(open(&flipped, &scene.bob).is_err(), "flipped at {at}");
    }
    assert!(open(&[&bytes[..], &[0]].concat(), &scene.bob).is_err());
    assert_eq!(refused(&vec![0; MAX_LEN + 1], &scene.bob), ShareError::Malformed("it is too long"));
    let mut newer = bytes;
    newer[9] = 2;
    assert_eq!(refused(&newer, &scene.bob), ShareError::Newer(2));
}

/// Somebody who can read a bundle signs its contents anew, as his own.
#[test]
fn a_stolen_bundle_cannot_be_passed_off_as_ones_own() {
    let scene = scene();
    let thief = Identity::generate();
    let stolen: Signed<Bundle> = from_cbor(&scene.share()[HEAD..]).expect("a bundle");
    let bundle = stolen.open(&scene.alice.public()).expect("alice's");
    let signed = |bundle: &Bundle| {
        let signed = to_cbor(&Signed::new(bundle, &thief));
        [&MAGIC[..], &VERSION.to_be_bytes(), &thief.public().0, &signed].concat()
    };
    assert!(matches!(refused(&signed(&bundle), &scene.bob), ShareError::Contradiction(_)));
    // With a token that he gave himself the facts are others, and the sealed key does not open.
    let whole = Scope { holder: thief.public(), ..scene.facts.token.verify(&scene.authd.public()).expect("good") };
    let token = Token::grant(&whole, &scene.authd);
    let token = token.narrow(&scene.authd.public(), &Scope { holder: scene.bob.public(), ..whole }, &thief);
    let facts = ShareFacts { token: token.expect("as wide"), ..scene.facts.clone() };
    let forged = Bundle { facts: to_cbor(&facts), ..bundle };
    assert_eq!(refused(&signed(&forged), &scene.bob), ShareError::Sealed);
}

#[test]
fn facts_that_contradict_the_token_are_neither_sealed_nor_opened() {
    let scene = scene();
    let Scene { facts, .. } = &scene;
    for bad in [
        ShareFacts { lease: LeaseId([9; 16]), ..facts.clone() },
        ShareFacts { boot: BootId([9; 16]), ..facts.clone() },
        ShareFacts { bytes: 4096, ..facts.clone() },
        ShareFacts { bytes: 0, ..facts.clone() },
        ShareFacts { block: 0, ..facts.clone() },
        ShareFacts { block: 1 << 30, ..facts.clone() },
        ShareFacts { authd: scene.alice.public(), ..facts.clone() },
        ShareFacts { to: scene.authd.public(), ..facts.clone() },
        ShareFacts {
            token: Token::grant(&facts.token.verify(&facts.authd).expect("good"), &scene.authd),
            ..facts.clone()
        },
    ] {
        assert!(seal(&bad, &scene.key, &scene.alice).is_err(), "{bad:?}");
        // And one that was sealed without asking this code.
        let bundle = Bundle { facts: to_cbor(&bad), fresh: [9; 32], sealed: [0; KEY + TAG] };
        let signed = to_cbor(&Signed::new(&bundle, &scene.alice));
        let bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &scene.alice.public().0, &signed].concat();
        assert!(open(&bytes, &scene.bob).is_err(), "{bad:?}");
    }
    assert!(seal(facts, &scene.key, &scene.bob).is_err(), "bob did not give it to himself");
}

#[test]
fn a_fresh_key_of_low_order_seals_nothing() {
    let scene = scene();
    // With such a key everybody agrees on zero, whoever the recipient is.
    for fresh in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
        let facts = to_cbor(&scene.facts);
        let bundle = Bundle { facts, fresh, sealed: [0; KEY + TAG] };
        let signed = to_cbor(&Signed::new(&bundle, &scene.alice));
        let bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &scene.alice.public().0, &signed].concat();
        assert_eq!(refused(&bytes, &scene.bob), ShareError::Sealed);
    }
    let mut weak = [0; 32];
    weak[0] = 1;
    assert!(PublicKey(weak).to_x25519().is_err());
}

#[test]
fn both_halves_of_an_identity_agree_in_montgomery_form() {
    let (a, b) = (Identity::generate(), Identity::generate());
    let ab = a.agree(&b.public().to_x25519().expect("a key"));
    let ba = b.agree(&a.public().to_x25519().expect("a key"));
    assert_eq!(ab.as_bytes(), ba.as_bytes());
}

#[test]
fn eight_hands_and_no_more() {
    let mut scene = scene();
    let mut giver = scene.bob;
    for hand in 2..9 {
        let next = Identity::generate();
        let scope = scene.facts.token.verify(&scene.facts.authd).expect("good");
        let narrowed = scene.facts.token.narrow(&scene.facts.authd, &Scope { holder: next.public(), ..scope }, &giver);
        if hand == 8 {
            assert_eq!(narrowed, Err(TokenError::TooLong));
            break;
        }
        scene.facts = ShareFacts { token: narrowed.expect("as wide"), to: next.public(), ..scene.facts };
        let bytes = seal(&scene.facts, &scene.key, &giver).expect("passed on");
        assert!(bytes.len() < MAX_LEN);
        assert_eq!(open(&bytes, &next).expect("for the next").from, giver.public());
        giver = next;
    }
}
