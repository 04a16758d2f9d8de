//! `tenant`: what operators do with tenants.

use clap::Subcommand;
use overbank::{Allowance, Size, Tenant, TenantInfo};
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::operate::TenantCommand;
use super::output::table;

/// Who is kept apart from whom.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all tenants, what they have and how much they may have
    List,
    /// Set how much a tenant may have, from its next lease on
    ///
    /// Leases that there are stay. What is not named stays as it is.
    #[command(after_help = "\
Examples:
  overbank tenant quota blue --bytes 64GiB --leases 10
  overbank tenant quota blue --bytes default          what holds for all (overbank-authd serve --quota-bytes)")]
    Quota {
        /// The tenant's name
        #[arg(value_parser = |text: &str| text.parse::<Tenant>())]
        name: Tenant,
        /// Most memory pinned in its name, such as 64GiB, or 'default'
        #[arg(long, value_name = "SIZE", value_parser = bytes, required_unless_present = "leases")]
        bytes: Option<Allowance>,
        /// Most leases at once, or 'default'
        #[arg(long, value_name = "N", value_parser = leases)]
        leases: Option<Allowance>,
    },
    #[command(flatten)]
    Operate(TenantCommand),
}

fn bytes(text: &str) -> Result<Allowance, String> {
    allowance(text, |text| text.parse::<Size>().map(|size| size.0).map_err(|error| error.to_string()))
}

fn leases(text: &str) -> Result<Allowance, String> {
    allowance(text, |text| text.parse().map_err(|_| format!("'{text}' is no number of leases")))
}

fn allowance(text: &str, number: impl FnOnce(&str) -> Result<u64, String>) -> Result<Allowance, String> {
    match text {
        "default" => Ok(Allowance::AsForAll),
        _ => number(text).map(Allowance::Most),
    }
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List => {
                let tenants = context.connect()?.tenants()?;
                let head = ["TENANT", "LEASES", "OF", "PINNED", "OF"].map(str::to_owned).to_vec();
                let rows: Vec<_> = std::iter::once(head).chain(tenants.iter().map(row)).collect();
                let entries: Vec<Value> = tenants.iter().map(entry).collect();
                context.output.answer(&table(&rows), &json!({ "tenants": entries }))
            }
            Self::Operate(command) => command.run(context),
            Self::Quota { name, bytes, leases } => {
                let keep = |wanted: Option<Allowance>| wanted.unwrap_or(Allowance::AsItIs);
                let tenant = context.connect()?.tenant_quota(name, keep(bytes), keep(leases))?;
                let most = |most: Option<u64>, text: fn(u64) -> String| most.map_or("no limit".to_owned(), text);
                let text = format!(
                    "{}: {} of memory, of which {} is pinned; {} leases, of which there are {}",
                    tenant.tenant,
                    most(tenant.quota_bytes, size),
                    Size(tenant.pinned_bytes),
                    most(tenant.quota_leases, |leases| leases.to_string()),
                    tenant.leases
                );
                context.output.answer(&text, &entry(&tenant))
            }
        }
    }
}

fn size(bytes: u64) -> String {
    Size(bytes).to_string()
}

fn row(tenant: &TenantInfo) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        tenant.tenant.to_string(),
        tenant.leases.to_string(),
        tenant.quota_leases.map_or_else(dash, |leases| leases.to_string()),
        size(tenant.pinned_bytes),
        tenant.quota_bytes.map_or_else(dash, size),
    ]
}

fn entry(tenant: &TenantInfo) -> Value {
    json!({
        "tenant": tenant.tenant.to_string(),
        "leases": tenant.leases,
        "quota_leases": tenant.quota_leases,
        "pinned_bytes": tenant.pinned_bytes,
        "quota_bytes": tenant.quota_bytes,
        "own": tenant.own,
    })
}
