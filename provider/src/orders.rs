//! What the auth daemon orders, and how it is answered.

use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, Request};

use crate::attach::Gate;
use crate::backend::Backend;
use crate::clock::BootTime;
use crate::keeper::Keeper;

/// Carries out one order, for at most as long as the asker waits.
///
/// # Errors
/// A refusal; with [`RefusalCode::Deadline`] the order may still be carried out.
pub async fn carry_out<B: Backend>(keeper: &Keeper<B>, gate: &Gate, request: Request) -> Result<Reply, Refusal> {
    let now = BootTime::now();
    let patience = std::time::Duration::from_millis(u64::from(request.deadline_ms));
    let work = async {
        match request.call {
            Call::Carve(carve) => keeper.carve(carve).await,
            Call::Bind(attach) => {
                let admission = gate.admit(&attach, now.tick())?;
                keeper.bind(admission, now.after_ms(u64::from(request.deadline_ms))).await
            }
            Call::Extend(extend) => keeper.extend(extend).await,
            Call::Fence(fence) => keeper.fence(fence).await,
            _ => Err(Refusal::new(
                RefusalCode::Invalid,
                "this is no order to a provider: carve, bind, extend and fence are",
            )),
        }
    };
    let outcome = tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
        Err(Refusal::new(
            RefusalCode::Deadline,
            "the provider has not finished in time; the order may still be carried out",
        ))
    });
    if let Err(refusal) = &outcome {
        tracing::debug!(correlation = %request.correlation, code = ?refusal.code, %refusal, "order refused");
    }
    outcome
}
