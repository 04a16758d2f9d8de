//! `id`, `join` and `status`: who we are to the auth daemon, and what it tells us.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use clap::Args;
use overbank::{
    Client, Invitation, ProviderStatus, Role, Size, TrustEntry, TrustState, identity, public_key, show_duration,
};
use overbank_fabric::ids::hex;
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{printable, table};

/// Bytes that are read of standard input, at most, for an invitation.
const LONGEST_CODE: u64 = 1024;

/// Show who you are.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  overbank id             what to tell the operator: `overbank trust approve FINGERPRINT --role consumer --tenant NAME`")]
pub(crate) struct Id {
    /// Do not ask the auth daemon what it makes of you
    #[arg(long)]
    offline: bool,
    /// Make a new identity that takes over all that this one has: role, tenant and leases. This one is revoked
    #[arg(long, conflicts_with = "offline")]
    rotate: bool,
}

/// Redeem an invitation.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  overbank join 90c1…3f.5b02…77   the code names the auth daemon's key, so nothing is taken on trust
  overbank join - <code           as above, and nobody sees it in a list of processes")]
pub(crate) struct Join {
    /// The invitation, as the operator gave it to you, or - for standard input
    code: String,
}

impl Id {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        if self.rotate {
            let (old, new) = overbank::rotate(&context.config)?;
            let answer = json!({ "fingerprint": new.to_string(), "took_over_from": old.to_string() });
            return context.output.answer(&format!("{new} took over from {old}, which is revoked"), &answer);
        }
        let (fingerprint, made) = identity(&context.config)?;
        let key = hex(&public_key(&context.config)?.0);
        let seen = if self.offline { None } else { Some(self.ask(context)?) };
        let home = context.config.home().display().to_string();
        let mut rows = vec![
            vec!["fingerprint".to_owned(), fingerprint.to_string()],
            vec!["key".to_owned(), key.clone()],
            vec!["home".to_owned(), home.clone() + if made { " (a new identity was made)" } else { "" }],
        ];
        let mut answer = json!({ "fingerprint": fingerprint.to_string(), "key": key, "home": home, "created": made });
        match seen {
            None => {}
            Some(Ok((client, entry))) => {
                rows.push(vec!["auth daemon".to_owned(), format!("{} at {}", client.authd(), context.config.authd())]);
                rows.push(vec!["trust".to_owned(), describe(&entry)]);
                answer["authd"] = json!({
                    "address": context.config.authd(),
                    "fingerprint": client.authd().to_string(),
                    "you": entry_json(&entry),
                });
            }
            Some(Err(unreachable)) => {
                rows.push(vec!["auth daemon".to_owned(), format!("not reached: {unreachable}")]);
                answer["authd"] = json!({ "address": context.config.authd(), "error": unreachable.to_string() });
            }
        }
        context.output.answer(&table(&rows), &answer)
    }

    /// What the auth daemon makes of us; the inner error where it cannot be reached, which is no failure here.
    fn ask(&self, context: &Context) -> Result<Result<(Client, TrustEntry), Failure>, Failure> {
        let asked = context.connect().and_then(|client| {
            let entry = client.who_am_i()?;
            Ok((client, entry))
        });
        match asked {
            Err(failure) if failure.status().0 != 3 => Err(failure),
            asked => Ok(asked),
        }
    }
}

impl Join {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let code = if self.code == "-" { first_line()? } else { self.code };
        let invitation: Invitation = code.trim().parse().map_err(|error| {
            Failure::Usage(format!("this is no invitation: {error}. It looks like FINGERPRINT.SECRET"))
        })?;
        let mut config = context.config.clone();
        config.authd_fingerprint = Some(invitation.authd);
        let entry = context.connect_with(&config)?.join(&invitation)?;
        context.output.answer(&format!("you are {}", describe(&entry)), &entry_json(&entry))
    }
}

/// As much of standard input's first line as an invitation can have.
fn first_line() -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::stdin().lock().take(LONGEST_CODE).read_line(&mut line);
    read.map_err(Failure::file("read the invitation from", "standard input"))?;
    Ok(line)
}

/// Shows the pool as the auth daemon sees it.
pub(crate) fn status(context: &Context) -> Result<(), Failure> {
    let client = context.connect()?;
    let status = client.status()?;
    let uptime = show_duration(Duration::from_millis(status.uptime_ms));
    let mut rows = vec![
        vec![
            "auth daemon".to_owned(),
            format!(
                "{} at {}, version {}, up {uptime}",
                client.authd(),
                context.config.authd(),
                printable(&status.version)
            ),
        ],
        vec!["you".to_owned(), describe(&status.you)],
        vec!["leases".to_owned(), format!("{} active, {}", status.leases, Size(status.leased_bytes))],
    ];
    if status.providers.is_empty() {
        rows.push(vec!["providers".to_owned(), "none".to_owned()]);
    }
    let operator = status.you.role == Some(Role::Operator);
    for provider in &status.providers {
        let mut says = if provider.connected { "connected".to_owned() } else { "away".to_owned() };
        if provider.drained {
            says += ", drained";
        }
        says += &format!(", {} free", Size(provider.free_bytes));
        if operator {
            says += &format!(" of {}", Size(provider.pool_bytes));
            if provider.quarantined_bytes > 0 {
                says += &format!(", {} quarantined", Size(provider.quarantined_bytes));
            }
            says += &format!(", {}", printable(&provider.device));
        }
        rows.push(vec!["provider".to_owned(), format!("{}: {says}", provider.fingerprint)]);
    }
    if operator && !status.rejected.is_empty() {
        let rejected = status.rejected.iter().map(|(reason, count)| format!("{} {count}", printable(reason)));
        rows.push(vec!["refused".to_owned(), rejected.collect::<Vec<_>>().join(", ")]);
    }
    let providers: Vec<Value> = status.providers.iter().map(provider_json).collect();
    let answer = json!({
        "authd": {
            "address": context.config.authd(),
            "fingerprint": client.authd().to_string(),
            "version": status.version,
            "uptime_ms": status.uptime_ms,
        },
        "you": entry_json(&status.you),
        "leases": status.leases,
        "leased_bytes": status.leased_bytes,
        "providers": providers,
        "rejected_total": status.rejected,
    });
    context.output.answer(&table(&rows), &answer)
}

/// One provider as JSON.
pub(crate) fn provider_json(provider: &ProviderStatus) -> Value {
    json!({
        "fingerprint": provider.fingerprint.to_string(),
        "name": provider.name,
        "connected": provider.connected,
        "drained": provider.drained,
        "pool_bytes": provider.pool_bytes,
        "free_bytes": provider.free_bytes,
        "quarantined_bytes": provider.quarantined_bytes,
        "device": provider.device,
    })
}

/// One identity in words.
pub(crate) fn describe(entry: &TrustEntry) -> String {
    let name = entry.name.as_ref().map_or_else(String::new, |name| format!(", called {name}"));
    let said = match (entry.state, entry.role, &entry.tenant) {
        (TrustState::Pending, ..) => {
            format!("pending: an operator has to `overbank trust approve {}`", entry.fingerprint)
        }
        (state, Some(role), Some(tenant)) => format!("{state} as {role} of {tenant}"),
        (state, Some(role), None) => format!("{state} as {role}"),
        (state, None, _) => state.to_string(),
    };
    said + &name
}

/// One identity as JSON.
pub(crate) fn entry_json(entry: &TrustEntry) -> Value {
    json!({
        "fingerprint": entry.fingerprint.to_string(),
        "state": entry.state.to_string(),
        "role": entry.role.map(|role| role.to_string()),
        "tenant": entry.tenant.as_ref().map(|tenant| tenant.to_string()),
        "last_seen_from": entry.last_seen_from,
        "name": entry.name,
    })
}
