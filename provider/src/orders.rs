//! What the auth daemon orders, and how it is answered.

use std::time::Duration;

use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, Request};
use tokio::time::timeout;

use crate::attach::Gate;
use crate::backend::Backend;
use crate::clock::BootTime;
use crate::keeper::Keeper;

/// Carries out one order, for at most as long as the asker waits.
///
/// # Errors
/// A refusal; with [`RefusalCode::Deadline`] the order may still be carried out.
pub async fn carry_out<B: Backend>(keeper: &Keeper<B>, gate: &Gate, request: Request) -> Result<Reply, Refusal> {
    let Request { correlation, deadline_ms, call, .. } = request;
    let (order, lease) = match &call {
        Call::Carve(carve) => ("carve", carve.lease),
        Call::Bind(attach) => ("attach", attach.lease),
        Call::Extend(extend) => ("extend", extend.lease),
        Call::Fence(fence) => ("fence", fence.lease),
        Call::Detach(detach) => ("detach", detach.lease),
        _ => return Err(no_order()),
    };
    let patience = Duration::from_millis(u64::from(deadline_ms));
    let outcome = timeout(patience, give(keeper, gate, deadline_ms, call)).await.unwrap_or_else(|_| {
        let why = "the provider has not finished in time; the order may still be carried out";
        Err(Refusal::new(RefusalCode::Deadline, why))
    });
    match &outcome {
        // Borrowers can cause any number of these.
        Ok(Reply::Attached(_)) => tracing::debug!(%correlation, %lease, order, "done"),
        Ok(_) => tracing::info!(%correlation, %lease, order, "done"),
        Err(refusal) if refusal.code == RefusalCode::Internal => {
            tracing::error!(%correlation, %lease, order, %refusal, "failed");
        }
        Err(refusal) => tracing::debug!(%correlation, %lease, order, code = ?refusal.code, %refusal, "refused"),
    }
    outcome
}

async fn give<B: Backend>(keeper: &Keeper<B>, gate: &Gate, deadline_ms: u32, call: Call) -> Result<Reply, Refusal> {
    match call {
        Call::Carve(carve) => keeper.carve(carve).await,
        Call::Bind(attach) => {
            let now = BootTime::now();
            let admission = gate.admit(&attach, now.tick())?;
            keeper.bind(admission, now.after_ms(u64::from(deadline_ms))).await
        }
        Call::Extend(extend) => keeper.extend(extend).await,
        Call::Fence(fence) => keeper.fence(fence).await,
        Call::Detach(detach) => keeper.detach(detach).await,
        _ => Err(no_order()),
    }
}

fn no_order() -> Refusal {
    Refusal::new(RefusalCode::Invalid, "this is no order to a provider: carve, bind, extend, fence and detach are")
}
