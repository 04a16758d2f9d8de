//! `receipt`: the provider's signed word on how a lease ended, checked without asking anybody.

use std::path::PathBuf;

use clap::Subcommand;
use overbank::{Fingerprint, Size, read_bundle, verify_receipt};
use serde_json::json;

use super::exit::Failure;
use super::lease::steps;
use super::output::{Output, table};

/// Receipts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that a receipt is whole, and that it says that the memory was made unreachable, overwritten and checked
    #[command(after_help = "\
Example:
  overbank lease release 3fa9 --receipt 3fa9.receipt
  overbank receipt verify 3fa9.receipt --provider 90c1…3f

A receipt is the provider's word: who wants to be sure whose, names the provider. `overbank lease list --json` shows it.")]
    Verify {
        /// The receipt
        file: PathBuf,
        /// Who should have signed it [default: whoever it names]
        #[arg(long, value_name = "FINGERPRINT")]
        provider: Option<Fingerprint>,
    },
}

impl Command {
    pub(crate) fn run(self, output: Output) -> Result<(), Failure> {
        let Self::Verify { file, provider } = self;
        let receipt = verify_receipt(&read_bundle(&file)?, provider).map_err(Failure::Receipt)?;
        let signed_by = receipt.provider.fingerprint();
        let compare = if provider.is_some() { "" } else { " (compare it with the one that you know)" };
        let text = table(&[
            vec!["lease".to_owned(), receipt.lease.to_string()],
            vec!["tenant".to_owned(), receipt.tenant.to_string()],
            vec!["ended".to_owned(), receipt.reason.to_string()],
            vec!["memory".to_owned(), Size(receipt.bytes).to_string()],
            vec!["signed by".to_owned(), format!("{signed_by}{compare}")],
        ]);
        let answer = json!({
            "lease": receipt.lease.to_string(),
            "tenant": receipt.tenant.to_string(),
            "provider": signed_by.to_string(),
            "provider_named": provider.is_some(),
            "boot": receipt.boot.to_string(),
            "bytes": receipt.bytes,
            "reason": receipt.reason,
            "due_us": receipt.due_us,
            "steps": receipt.steps.iter().map(|done| json!({ "step": done.step, "at_us": done.at_us })).collect::<Vec<_>>(),
        });
        output.answer(&format!("{text}{}", steps(&receipt)), &answer)
    }
}
