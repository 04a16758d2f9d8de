use overbank_fabric::attach::EndpointBytes;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::signed::Signed;
use overbank_fabric::time::Deadline;
use overbank_fabric::token::{Rights, Token};

use super::*;
use crate::double::endpoint;

const NOW: Tick = Tick(500);

/// Everybody who takes part, and a request that is allowed.
struct Scene {
    authd: Identity,
    holder: Identity,
    gate: Gate,
    scope: Scope,
    token: Token,
    request: AttachRequest,
}

fn scene() -> Scene {
    let (authd, holder, provider) = (Identity::generate(), Identity::generate(), Identity::generate());
    let boot = BootId([1; 16]);
    let scope = Scope {
        lease: LeaseId([2; 16]),
        deadline: Deadline { boot, tick: Tick(1000) },
        first_block: 0,
        blocks: 8,
        rights: Rights::READ_WRITE,
        holder: holder.public(),
    };
    let token = Token::grant(&scope, &authd);
    let request = AttachRequest {
        token: token.hash(),
        lanes: vec![EndpointBytes(endpoint(7).to_bytes()); 2],
        provider: provider.public(),
        boot,
        nonce: Nonce([3; 16]),
    };
    let gate = Gate { authd: authd.public(), former: Vec::new(), provider: vec![provider.public()], boot };
    Scene { authd, holder, gate, scope, token, request }
}

impl Scene {
    fn attach(&self) -> Attach {
        let request = Signed::new(&self.request, &self.holder);
        Attach { lease: self.scope.lease, token: self.token.clone(), request }
    }

    fn refused(&self, attach: &Attach) -> RefusalCode {
        self.gate.admit(attach, NOW).expect_err("refused").code
    }

    /// With another token, which the request names.
    fn with_token(&self, scope: &Scope, signer: &Identity) -> Attach {
        let token = Token::grant(scope, signer);
        let request = AttachRequest { token: token.hash(), ..self.request.clone() };
        Attach { token, request: Signed::new(&request, &self.holder), ..self.attach() }
    }

    /// With another request, signed well.
    fn with_request(&self, change: impl FnOnce(&mut AttachRequest)) -> Attach {
        let mut request = self.request.clone();
        change(&mut request);
        Attach { request: Signed::new(&request, &self.holder), ..self.attach() }
    }
}

#[test]
fn the_holder_of_a_live_token_is_let_in() {
    let scene = scene();
    let attach = scene.attach();
    let admission = scene.gate.admit(&attach, NOW).expect("allowed");
    assert_eq!((admission.scope, admission.root), (scene.scope, true));
    assert_eq!((admission.remotes.len(), admission.request), (2, attach.request.hash()));
}

#[test]
fn a_delegate_is_let_in_with_what_was_delegated() {
    let (mut scene, delegate) = (scene(), Identity::generate());
    let narrow = Scope { holder: delegate.public(), rights: Rights::READ, blocks: 2, ..scene.scope };
    scene.token = scene.token.narrow(&scene.gate.authd, &narrow, &scene.holder).expect("narrower");
    scene.request.token = scene.token.hash();
    assert_eq!(scene.refused(&scene.attach()), RefusalCode::BadSignature, "the holder who gave it away");
    scene.holder = delegate;
    let admission = scene.gate.admit(&scene.attach(), NOW).expect("allowed");
    assert_eq!((admission.scope, admission.root), (narrow, false));
}

#[test]
fn tokens_of_others_for_others_or_out_of_date_are_refused() {
    let scene = scene();
    let deadline = |boot, tick| Scope { deadline: Deadline { boot, tick: Tick(tick) }, ..scene.scope };
    assert_eq!(scene.refused(&scene.with_token(&scene.scope, &Identity::generate())), RefusalCode::BadToken);
    let other = Scope { lease: LeaseId([9; 16]), ..scene.scope };
    assert_eq!(scene.refused(&scene.with_token(&other, &scene.authd)), RefusalCode::BadToken);
    let past = deadline(scene.gate.boot, NOW.0);
    assert_eq!(scene.refused(&scene.with_token(&past, &scene.authd)), RefusalCode::BadToken);
    assert!(scene.gate.admit(&scene.with_token(&deadline(scene.gate.boot, NOW.0 + 1), &scene.authd), NOW).is_ok());
    let restarted = deadline(BootId([8; 16]), 1000);
    assert_eq!(scene.refused(&scene.with_token(&restarted, &scene.authd)), RefusalCode::LeaseLost);
}

#[test]
fn requests_by_others_or_for_others_are_refused() {
    let scene = scene();
    let stolen = Signed::new(&scene.request, &Identity::generate());
    assert_eq!(scene.refused(&Attach { request: stolen, ..scene.attach() }), RefusalCode::BadSignature);
    for attach in [
        scene.with_request(|request| request.token[0] ^= 1),
        scene.with_request(|request| request.provider = Identity::generate().public()),
        scene.with_request(|request| request.boot = BootId([8; 16])),
    ] {
        assert_eq!(scene.refused(&attach), RefusalCode::BadSignature);
    }
}

#[test]
fn who_knows_the_provider_by_a_key_that_it_had_is_let_in() {
    let mut scene = scene();
    let new = Identity::generate().public();
    scene.gate.provider.push(new);
    assert!(scene.gate.admit(&scene.attach(), NOW).is_ok());
    assert!(scene.gate.admit(&scene.with_request(|request| request.provider = new), NOW).is_ok());
}

#[test]
fn lanes_are_one_to_sixteen_usable_endpoints() {
    let scene = scene();
    let lane = EndpointBytes(endpoint(7).to_bytes());
    for count in [0, MAX_LANES + 1, 1000] {
        let attach = scene.with_request(|request| request.lanes = vec![lane; count]);
        assert_eq!(scene.refused(&attach), RefusalCode::Invalid, "{count}");
    }
    for count in [1, MAX_LANES] {
        let attach = scene.with_request(|request| request.lanes = vec![lane; count]);
        assert!(scene.gate.admit(&attach, NOW).is_ok(), "{count}");
    }
    let attach = scene.with_request(|request| request.lanes[1] = EndpointBytes([0xff; 32]));
    assert_eq!(scene.refused(&attach), RefusalCode::Invalid);
}
