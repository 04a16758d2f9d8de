//! `provider`, `tenant`, `proposal` and `shutdown`: what operators do with lenders, tenants, each other and the daemon.

use clap::Subcommand;
use overbank::{Allowance, Call, Client, Proposal, Reply, Size, Tenant, show_duration};
use serde_json::{Value, json};
use std::time::Duration;

use super::Context;
use super::audit::utc;
use super::exit::Failure;
use super::identity::{describe, entry_json, provider_json};
use super::lease::info_json;
use super::output::{printable, table};
use super::trust::{FEWEST, Named};

/// Lenders.
#[derive(Debug, Subcommand)]
pub(crate) enum Provider {
    /// Show all providers
    List,
    /// End every lease at a provider, now, and give it no new ones
    #[command(after_help = "\
Example:
  overbank provider stop 5b02aa17")]
    Stop {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
    /// Give a provider no new leases; those that it has go on
    #[command(after_help = "\
Example:
  overbank provider drain 5b02aa17      before maintenance; `provider undrain` takes it back")]
    Drain {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
    /// Give a provider new leases again
    Undrain {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
}

/// Tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// End every lease of a tenant, now. Its consumers can make new ones: revoke those who must not
    #[command(after_help = "\
Example:
  overbank tenant stop blue")]
    Stop {
        /// Its name
        tenant: Tenant,
    },
}

/// What takes several operators.
#[derive(Debug, Subcommand)]
pub(crate) enum ProposalCommand {
    /// Show what waits for more operators
    List,
    /// Show one proposal: its exact effect, who asked, who approved
    Show {
        /// Its id, or the first 8 or more digits of it
        #[arg(value_parser = id_begins)]
        id: String,
    },
    /// Approve exactly what a proposal says, which is shown once more; the last approval that it takes has it done
    #[command(after_help = "\
Example:
  overbank proposal show 3fa95c01 && overbank proposal approve 3fa95c01")]
    Approve {
        /// Its id, or the first 8 or more digits of it
        #[arg(value_parser = id_begins)]
        id: String,
    },
}

impl Provider {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let (Self::Stop { fingerprint } | Self::Drain { fingerprint } | Self::Undrain { fingerprint }) = &self else {
            return list(context);
        };
        let named = Named::parse(fingerprint)?;
        let client = context.connect()?;
        let provider = named.resolve(&client)?;
        let mut answer = json!({ "provider": provider.to_string() });
        let text = match self {
            Self::Stop { .. } => {
                let leases = client.stop_provider(provider)?;
                answer["leases_stopped"] = leases.into();
                answer["drained"] = true.into();
                format!("{provider}: {leases} leases end now, and it gets no new ones")
            }
            Self::Drain { .. } => {
                client.drain_provider(provider, true)?;
                answer["drained"] = true.into();
                format!("{provider} gets no new leases")
            }
            _ => {
                client.drain_provider(provider, false)?;
                answer["drained"] = false.into();
                format!("{provider} gets new leases again")
            }
        };
        context.output.answer(&text, &answer)
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let providers = context.connect()?.status()?.providers;
    let head = ["FINGERPRINT", "NAME", "STATE", "LEASES", "FREE", "POOL", "QUARANTINED", "DEVICE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(providers.iter().map(|provider| {
        vec![
            provider.fingerprint.to_string(),
            provider.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            if provider.connected { "connected" } else { "away" }.to_owned(),
            if provider.drained { "drained" } else { "new ones" }.to_owned(),
            Size(provider.free_bytes).to_string(),
            Size(provider.pool_bytes).to_string(),
            Size(provider.quarantined_bytes).to_string(),
            printable(&provider.device),
        ]
    }));
    let answer = json!({ "providers": providers.iter().map(provider_json).collect::<Vec<_>>() });
    context.output.answer(&table(&rows), &answer)
}

impl TenantCommand {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let Self::Stop { tenant } = self;
        let leases = context.connect()?.stop_tenant(tenant.clone())?;
        let answer = json!({ "tenant": tenant.to_string(), "leases_stopped": leases });
        context.output.answer(&format!("{tenant}: {leases} leases end now"), &answer)
    }
}

/// Stops the auth daemon.
pub(crate) fn shutdown(context: &Context) -> Result<(), Failure> {
    let client = context.connect()?;
    client.shutdown()?;
    let text = format!("the auth daemon at {} stops; leases go on, and end on time without it", context.config.authd());
    context.output.answer(&text, &json!({ "authd": context.config.authd(), "stopping": true }))
}

impl ProposalCommand {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.connect()?;
        match self {
            Self::List => {
                let proposals = client.proposals()?;
                let mut rows = vec![["PROPOSAL", "APPROVED", "LEFT", "BY", "EFFECT"].map(str::to_owned).to_vec()];
                rows.extend(proposals.iter().map(|it| {
                    vec![
                        it.id.to_string(),
                        format!("{} of {}", it.approved.len(), it.needed),
                        show_duration(Duration::from_millis(it.left_ms)),
                        it.by.to_string(),
                        effect(&it.effect),
                    ]
                }));
                let answer = json!({ "proposals": proposals.iter().map(proposal_json).collect::<Vec<_>>() });
                context.output.answer(&table(&rows), &answer)
            }
            Self::Show { id } => {
                let proposal = find(&client, &id)?;
                context.output.answer(&in_words(&proposal), &proposal_json(&proposal))
            }
            Self::Approve { id } => {
                let proposal = find(&client, &id)?;
                // These words, and what is signed, are of one and the same answer of the auth daemon.
                context.output.notice(&format!("approving\n{}", in_words(&proposal)));
                approved(context, &client.approve_proposal(&proposal)?)
            }
        }
    }
}

/// What came of an approval.
fn approved(context: &Context, reply: &Reply) -> Result<(), Failure> {
    let (text, done) = match reply {
        Reply::Proposed(proposal) => {
            let answer = json!({ "done": false, "proposal": proposal_json(proposal) });
            return context.output.answer(&in_words(proposal), &answer);
        }
        Reply::Done => ("done".to_owned(), Value::Null),
        Reply::Trust(entries) => {
            let said = entries.iter().map(|entry| format!("{}  {}", entry.fingerprint, describe(entry)));
            (said.collect::<Vec<_>>().join("\n"), json!(entries.iter().map(entry_json).collect::<Vec<_>>()))
        }
        Reply::Leases(leases) => {
            let said = leases.iter().map(|info| format!("lease {} is {}", info.lease, info.state));
            let json: Vec<Value> = leases.iter().map(|info| info_json(info, None, false)).collect();
            (said.collect::<Vec<_>>().join("\n"), json!(json))
        }
        Reply::Invitation(invitation) => (invitation.code(), json!(invitation.code())),
        Reply::Imported(it) => {
            (format!("{} added", it.added), json!({ "added": it.added, "same": it.same, "different": it.different }))
        }
        Reply::Stopped(leases) => (format!("{leases} leases end now"), json!({ "leases_stopped": leases })),
        _ => ("done".to_owned(), Value::Null),
    };
    context.output.answer(&text, &json!({ "done": true, "answer": done }))
}

/// A proposal's id, or how it begins.
fn id_begins(text: &str) -> Result<String, String> {
    if text.len() < FEWEST || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("'{text}' names no proposal: write the first {FEWEST} digits of its id, or more"));
    }
    Ok(text.to_ascii_lowercase())
}

/// The proposal whose id begins like that.
fn find(client: &Client, id: &str) -> Result<Proposal, Failure> {
    let mut matching = client.proposals()?.into_iter().filter(|it| it.id.to_string().starts_with(id));
    match (matching.next(), matching.next()) {
        (Some(proposal), None) => Ok(proposal),
        (None, _) => Err(Failure::Usage(format!("no proposal that waits begins with {id}"))),
        _ => Err(Failure::Usage("more than one proposal begins like that: write more digits".to_owned())),
    }
}

/// What a call does, in words: all that is signed stands in them.
fn effect(call: &Call) -> String {
    let of = |tenant: &Option<Tenant>| tenant.as_ref().map_or_else(String::new, |tenant| format!(" of {tenant}"));
    match call {
        Call::TrustApprove(it) => format!("trust {} as {}{}", it.fingerprint, it.role, of(&it.tenant)),
        Call::TrustInvite(it) => {
            let ttl = show_duration(Duration::from_millis(it.ttl_ms));
            format!("invite one {}{}, for {ttl}", it.role, of(&it.tenant))
        }
        Call::TrustImport(entries) => {
            let who = entries.iter().map(|it| {
                let name = it.name.as_ref().map_or_else(String::new, |name| format!(", called '{name}'"));
                match it.role {
                    Some(role) => format!("{} as {role}{}{name}", it.key.fingerprint(), of(&it.tenant)),
                    None => format!("{} as revoked{name}", it.key.fingerprint()),
                }
            });
            format!("import {}", who.collect::<Vec<_>>().join("; "))
        }
        Call::TrustRevoke(fingerprint) => format!("revoke {fingerprint} and end all its leases"),
        Call::LeaseStop(lease) => format!("stop lease {lease}"),
        Call::TenantStop(tenant) => format!("stop all leases of tenant {tenant}"),
        Call::ProviderStop(fingerprint) => format!("stop all leases at provider {fingerprint}, and drain it"),
        Call::ProviderDrain(fingerprint) => format!("drain provider {fingerprint}"),
        Call::ProviderUndrain(fingerprint) => format!("undrain provider {fingerprint}"),
        Call::Shutdown => "stop the auth daemon".to_owned(),
        Call::AuditForget(head) => {
            format!(
                "forget the audit log to record {}, of hash {} and signed at {}",
                head.seq,
                head.hash,
                utc(head.unix_ms)
            )
        }
        Call::TenantQuota(it) => {
            let word = |allowance| match allowance {
                Allowance::AsItIs => "as it is".to_owned(),
                Allowance::AsForAll => "as for all".to_owned(),
                Allowance::Most(most) => most.to_string(),
            };
            format!("set the quota of tenant {}: bytes {}, leases {}", it.tenant, word(it.bytes), word(it.leases))
        }
        // Not by this version of the auth daemon.
        other => format!("{other:?}").chars().filter(|c| !c.is_control()).collect(),
    }
}

fn in_words(proposal: &Proposal) -> String {
    let approved: Vec<String> = proposal.approved.iter().map(ToString::to_string).collect();
    let approved = if approved.is_empty() { "nobody".to_owned() } else { approved.join(", ") };
    table(&[
        vec!["proposal".to_owned(), proposal.id.to_string()],
        vec!["effect".to_owned(), effect(&proposal.effect)],
        vec!["asked by".to_owned(), proposal.by.to_string()],
        vec!["approved by".to_owned(), approved],
        vec!["takes".to_owned(), format!("{} operators", proposal.needed)],
        vec!["time left".to_owned(), show_duration(Duration::from_millis(proposal.left_ms))],
    ])
}

fn proposal_json(proposal: &Proposal) -> Value {
    json!({
        "proposal": proposal.id.to_string(),
        "effect": effect(&proposal.effect),
        "by": proposal.by.to_string(),
        "approved": proposal.approved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "needed": proposal.needed,
        "left_ms": proposal.left_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use overbank::{Import, PublicKey, Role};

    #[test]
    fn an_import_is_shown_whole() {
        let key = PublicKey([7; 32]);
        let tenant = Some("blue".parse().expect("a name"));
        let name = Some("node 7".parse().expect("a name"));
        let import = Import { key, role: Some(Role::Consumer), tenant, name };
        let revoked = Import { role: None, tenant: None, ..import.clone() };
        let who = key.fingerprint();
        assert_eq!(
            effect(&Call::TrustImport(vec![import, revoked])),
            format!("import {who} as consumer of blue, called 'node 7'; {who} as revoked, called 'node 7'")
        );
    }
}
