//! One of every call, and who may ask it.

use std::collections::BTreeSet;

use overbank_fabric::approval::Approval;
use overbank_fabric::attach::AttachRequest;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::message::{
    Allowance, Approve, Attach, Call, Carve, CreateLease, Detach, Extend, Fence, Heartbeat, Import, Invite, Join,
    Offer, Rename, RenewLease, Role, Rotate, TenantQuota,
};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::Signed;
use overbank_fabric::succession::Handover;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope, Token};

/// The name of a call on the wire.
fn name(call: &Call) -> String {
    match serde_json::to_value(call).expect("a call") {
        serde_json::Value::String(name) => name,
        serde_json::Value::Object(fields) => fields.keys().next().expect("one").clone(),
        other => panic!("{other}"),
    }
}

/// The names of all calls that can be read.
fn every_name() -> BTreeSet<String> {
    let error = serde_json::from_value::<Call>("open_sesame".into()).expect_err("no such call").to_string();
    let (_, names) = error.split_once("expected one of ").expect("it says what there is");
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// One of every call there is. A call that is missing here is found: what can be read from the wire is the measure.
pub(crate) fn every_call() -> Vec<Call> {
    let lease = LeaseId([1; 16]);
    let deadline = Deadline { boot: BootId([2; 16]), tick: Tick(1) };
    let someone = Identity::generate();
    let (blocks, rights, holder) = (1, Rights::READ, someone.public());
    let token = Token::grant(&Scope { lease, deadline, first_block: 0, blocks, rights, holder }, &someone);
    let request = AttachRequest {
        token: token.hash(),
        lanes: Vec::new(),
        provider: someone.public(),
        boot: deadline.boot,
        nonce: Nonce([3; 16]),
    };
    let attach = Attach { lease, token, request: Signed::new(&request, &someone) };
    let receipt = Receipt {
        lease,
        tenant: "red".parse().expect("a tenant"),
        provider: someone.public(),
        boot: deadline.boot,
        bytes: 1,
        reason: EndReason::Expired,
        due_us: 0,
        steps: Vec::new(),
    };
    let heartbeat = Heartbeat { tick: Tick(1), free_bytes: 0, quarantined_bytes: 0 };
    let offer = Offer {
        boot: deadline.boot,
        heartbeat,
        pool_bytes: 0,
        page_bytes: 4096,
        device: String::new(),
        leases: Vec::new(),
    };
    let fingerprint = someone.public().fingerprint();
    let approval =
        Approval { authd: someone.public(), proposal: Nonce([4; 16]), effect: Call::Shutdown, expires_unix_ms: 0 };
    let every = vec![
        Call::WhoAmI,
        Call::Join(Join { secret: [0; 16] }),
        Call::CreateLease(CreateLease { nonce: Nonce([5; 16]), bytes: 1, block: 4096, ttl_ms: 60_000 }),
        Call::ListLeases,
        Call::ShowLease(lease),
        Call::RenewLease(RenewLease { lease, ttl_ms: 1000 }),
        Call::ReleaseLease(lease),
        Call::Attach(attach.clone()),
        Call::KeyOf(fingerprint),
        Call::Status,
        Call::TrustList,
        Call::TrustApprove(Approve { fingerprint, role: Role::Operator, tenant: None }),
        Call::TrustRevoke(fingerprint),
        Call::TrustInvite(Invite { role: Role::Operator, tenant: None, ttl_ms: 1000 }),
        Call::Audit(overbank_fabric::audit::Query::default()),
        Call::Rotate(Rotate {
            old: someone.public(),
            handover: Signed::<Handover>::to(&someone.public(), &someone, &someone.public(), 0),
        }),
        Call::Successions,
        Call::TrustShow(fingerprint),
        Call::TrustDeny(fingerprint),
        Call::TrustRename(Rename { fingerprint, name: None }),
        Call::TrustExport(None),
        Call::TrustImport(vec![Import { key: someone.public(), role: None, tenant: None, name: None }]),
        Call::LeaseStop(lease),
        Call::TenantStop("red".parse().expect("a tenant")),
        Call::ProviderStop(fingerprint),
        Call::ProviderDrain(fingerprint),
        Call::ProviderUndrain(fingerprint),
        Call::Shutdown,
        Call::TenantList,
        Call::TenantQuota(TenantQuota {
            tenant: "red".parse().expect("a tenant"),
            bytes: Allowance::AsForAll,
            leases: Allowance::Most(1),
        }),
        Call::AuditForget(overbank_fabric::audit::Checkpoint::new(
            0,
            overbank_fabric::audit::Hash([0; 32]),
            0,
            &someone,
        )),
        Call::ProposalList,
        Call::ProposalApprove(Signed::new(&approval, &someone)),
        Call::Offer(offer),
        Call::Heartbeat(heartbeat),
        Call::Ended(Signed::new(&receipt, &someone)),
        Call::Carve(Carve { lease, tenant: "red".parse().expect("a tenant"), blocks: 1, block: 512, deadline }),
        Call::Bind(attach),
        Call::Extend(Extend { lease, deadline }),
        Call::Fence(Fence { lease, reason: EndReason::Unknown }),
        Call::Detach(Detach { lease, holder: someone.public() }),
    ];
    let names: BTreeSet<String> = every.iter().map(name).collect();
    assert_eq!(names, every_name(), "each has its row");
    every
}

/// What anybody may ask.
pub(crate) fn is_free(call: &Call) -> bool {
    matches!(call, Call::WhoAmI | Call::Join(_) | Call::Rotate(_) | Call::Successions)
}

/// What is asked of providers alone.
pub(crate) fn is_order(call: &Call) -> bool {
    matches!(call, Call::Carve(_) | Call::Bind(_) | Call::Extend(_) | Call::Fence(_) | Call::Detach(_))
}

/// Who may ask what. Written out again, so that a slip in the daemon's own table shows.
pub(crate) fn allowed(role: &str, call: &Call) -> bool {
    match call {
        Call::WhoAmI | Call::Join(_) | Call::Rotate(_) | Call::Successions => true,
        Call::CreateLease(_) | Call::RenewLease(_) | Call::ReleaseLease(_) | Call::Attach(_) => role == "consumer",
        Call::ListLeases | Call::ShowLease(_) | Call::KeyOf(_) | Call::Status => {
            role == "consumer" || role == "operator"
        }
        Call::TrustList
        | Call::TrustApprove(_)
        | Call::TrustRevoke(_)
        | Call::TrustInvite(_)
        | Call::Audit(_)
        | Call::TrustShow(_)
        | Call::TrustDeny(_)
        | Call::TrustRename(_)
        | Call::TrustExport(_)
        | Call::TrustImport(_)
        | Call::LeaseStop(_)
        | Call::TenantStop(_)
        | Call::ProviderStop(_)
        | Call::ProviderDrain(_)
        | Call::ProviderUndrain(_)
        | Call::Shutdown
        | Call::TenantList
        | Call::TenantQuota(_)
        | Call::AuditForget(_)
        | Call::ProposalList
        | Call::ProposalApprove(_) => role == "operator",
        Call::Offer(_) | Call::Heartbeat(_) | Call::Ended(_) => role == "provider",
        Call::Carve(_) | Call::Bind(_) | Call::Extend(_) | Call::Fence(_) | Call::Detach(_) => false,
    }
}

#[test]
fn docs_name_every_call() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire-format.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let missing: Vec<_> = every_name().into_iter().filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/wire-format.md lacks {missing:?}");
}
