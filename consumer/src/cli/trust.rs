//! `trust`: what operators do with identities.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use overbank::{Client, Fingerprint, Import, Imported, Name, PublicKey, Role, Tenant, TrustEntry, TrustState};
use overbank_fabric::ids::{hex, unhex};
use serde::Deserialize;
use serde_json::{Value, json};

use super::exit::Failure;
use super::identity::{describe, entry_json};
use super::output::{printable, table};
use super::{Context, some_time};

/// Fewest digits that name an identity, or a proposal.
pub(crate) const FEWEST: usize = 8;
/// Longest file that is imported, bytes.
const MAX_TRANSFER: u64 = 64 << 20;

/// Who is trusted.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all identities: pending, trusted, revoked
    List,
    /// Trust a pending identity
    #[command(after_help = "\
Example:
  overbank trust approve 5b02aa17c3e4d9f01122334455667788aabbccdd --role consumer --tenant blue")]
    Approve {
        /// Its whole fingerprint, as it came by another channel: anybody can make a key that begins like it
        #[arg(value_parser = whole)]
        fingerprint: Fingerprint,
        #[command(flatten)]
        role: RoleArgs,
    },
    /// Show one identity
    Show {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
    /// Refuse a pending identity, for good
    Deny {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
    /// Give an identity a name that lists show, or take it away
    #[command(after_help = "\
Examples:
  overbank trust rename 5b02aa17 'node 7'
  overbank trust rename 5b02aa17 --none")]
    Rename {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
        /// 1 to 64 of a-z, A-Z, 0-9, '.', '_', '@', '-' and single blanks inside
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        name: Option<Name>,
        /// No name any more
        #[arg(long)]
        none: bool,
    },
    /// Write all that are trusted or revoked as JSON, for another auth daemon
    #[command(after_help = "\
Example:
  overbank --authd old trust export > trust.json && overbank --authd new trust import trust.json")]
    Export,
    /// Take in what `trust export` wrote: identities that nobody has decided on here. What was revoked stays so
    Import {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Stop trusting an identity, for good, and fence all its leases
    Revoke {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
    },
    /// Make an invitation that one identity can redeem once
    #[command(after_help = "\
Example:
  overbank trust invite --role consumer --tenant blue --ttl 1h")]
    Invite {
        #[command(flatten)]
        role: RoleArgs,
        /// How long it can be redeemed
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = some_time)]
        ttl: Duration,
    },
}

/// As what somebody is trusted.
#[derive(Debug, clap::Args)]
pub(crate) struct RoleArgs {
    /// consumer, provider or operator
    #[arg(long, value_parser = |text: &str| text.parse::<Role>())]
    role: Role,
    /// The tenant of a consumer: 1 to 32 of a-z, 0-9 and '-'
    #[arg(long, value_parser = |text: &str| text.parse::<Tenant>())]
    tenant: Option<Tenant>,
}

impl RoleArgs {
    fn check(self) -> Result<(Role, Option<Tenant>), Failure> {
        match (self.role, &self.tenant) {
            (Role::Consumer, None) => Err(Failure::Usage("a consumer needs a tenant: add --tenant NAME".to_owned())),
            (Role::Consumer, Some(_)) | (_, None) => Ok((self.role, self.tenant)),
            (role, Some(_)) => {
                Err(Failure::Usage(format!("only consumers have a tenant, not an {role}: leave out --tenant")))
            }
        }
    }
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List => list(context),
            Self::Approve { fingerprint, role } => {
                let (role, tenant) = role.check()?;
                let entry = context.connect()?.trust_approve(fingerprint, role, tenant)?;
                show(context, &entry)
            }
            Self::Revoke { fingerprint } => {
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                let entry = client.trust_revoke(named.resolve(&client)?)?;
                show(context, &entry)
            }
            Self::Show { fingerprint } => {
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                show(context, &client.trust_show(named.resolve(&client)?)?)
            }
            Self::Deny { fingerprint } => {
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                show(context, &client.trust_deny(named.resolve(&client)?)?)
            }
            Self::Rename { fingerprint, name, none: _ } => {
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                show(context, &client.trust_rename(named.resolve(&client)?, name)?)
            }
            Self::Export => {
                let file = transfer_of(&context.connect()?.trust_export()?);
                context.output.answer(&format!("{file:#}"), &file)
            }
            Self::Import { file } => {
                let entries = read_transfer(&file)?;
                let Imported { added, same, different } = context.connect()?.trust_import(&entries)?;
                let text = format!(
                    "{added} added; of those that were decided on here already, {same} agree and {different} do not, \
                     and all stay as they are"
                );
                context.output.answer(&text, &json!({ "added": added, "same": same, "different": different }))
            }
            Self::Invite { role, ttl } => {
                let (role, tenant) = role.check()?;
                let invitation = context.connect()?.trust_invite(role, tenant.clone(), ttl)?;
                let answer = json!({
                    "invitation": invitation.code(),
                    "authd": invitation.authd.to_string(),
                    "role": role.to_string(),
                    "tenant": tenant.map(|tenant| tenant.to_string()),
                    "ttl_ms": u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                });
                context.output.answer(&invitation.code(), &answer)
            }
        }
    }
}

/// What `export` writes.
fn transfer_of(entries: &[TrustEntry]) -> Value {
    let identities: Vec<Value> = entries
        .iter()
        .map(|entry| {
            json!({
                "key": hex(&entry.key.0),
                "fingerprint": entry.fingerprint.to_string(),
                "state": entry.state,
                "role": entry.role,
                "tenant": entry.tenant,
                "name": entry.name,
            })
        })
        .collect();
    json!({ "overbank_trust": 1, "identities": identities })
}

/// A file that `export` wrote.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    overbank_trust: u32,
    identities: Vec<Transferred>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transferred {
    key: String,
    fingerprint: String,
    state: TrustState,
    role: Option<Role>,
    tenant: Option<Tenant>,
    name: Option<Name>,
}

fn read_transfer(path: &Path) -> Result<Vec<Import>, Failure> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().take(MAX_TRANSFER + 1).read_to_string(&mut text),
        _ => File::open(path).and_then(|file| file.take(MAX_TRANSFER + 1).read_to_string(&mut text)),
    };
    let read = read.map_err(Failure::file("read", path))?;
    if read as u64 > MAX_TRANSFER {
        return Err(Failure::Usage(format!("{} is longer than 64 MiB: import it in parts", path.display())));
    }
    parse_transfer(&text).map_err(|why| Failure::Usage(format!("{} is no export of trust: {why}", path.display())))
}

fn parse_transfer(text: &str) -> Result<Vec<Import>, String> {
    let file: Transfer = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if file.overbank_trust != 1 {
        return Err(format!("version {} is not known here", file.overbank_trust));
    }
    let import = |it: Transferred| {
        let key = PublicKey(unhex("a key", &it.key).map_err(|error| error.to_string())?);
        if key.fingerprint().to_string() != it.fingerprint {
            return Err(format!("the key {} has another fingerprint than {}", it.key, it.fingerprint));
        }
        let (role, tenant) = match it.state {
            TrustState::Trusted if it.role.is_some() => (it.role, it.tenant),
            TrustState::Revoked => (None, None),
            state => return Err(format!("{} is {state}, with no role: only decisions are imported", it.fingerprint)),
        };
        Ok(Import { key, role, tenant, name: it.name })
    };
    file.identities.into_iter().map(import).collect()
}

fn show(context: &Context, entry: &TrustEntry) -> Result<(), Failure> {
    context.output.answer(&format!("{}  {}", entry.fingerprint, describe(entry)), &entry_json(entry))
}

fn list(context: &Context) -> Result<(), Failure> {
    let entries = context.connect()?.trust_list()?;
    let mut rows =
        vec![["FINGERPRINT", "STATE", "ROLE", "TENANT", "NAME", "LAST SEEN FROM"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            entry.fingerprint.to_string(),
            entry.state.to_string(),
            entry.role.map_or_else(|| "-".to_owned(), |role| role.to_string()),
            entry.tenant.as_ref().map_or_else(|| "-".to_owned(), |tenant| tenant.to_string()),
            entry.name.as_ref().map_or_else(|| "-".to_owned(), |name| name.to_string()),
            printable(entry.last_seen_from.as_deref().unwrap_or("-")),
        ]
    }));
    let answer = json!({ "identities": entries.iter().map(entry_json).collect::<Vec<_>>() });
    context.output.answer(&table(&rows), &answer)
}

/// Who is to be trusted, in all digits.
fn whole(text: &str) -> Result<Fingerprint, String> {
    text.parse()
        .map_err(|error| format!("{error}; who is to be trusted is named in full, since a beginning can be imitated"))
}

/// An identity as people name it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Whole(Fingerprint),
    Begins(String),
}

impl Named {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if let Ok(fingerprint) = text.parse() {
            return Ok(Self::Whole(fingerprint));
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits || !(FEWEST..40).contains(&text.len()) {
            return Err(Failure::Usage(format!(
                "'{text}' names no identity: write its fingerprint of 40 hexadecimal digits, or the first {FEWEST} or more"
            )));
        }
        Ok(Self::Begins(text.to_ascii_lowercase()))
    }

    pub(crate) fn resolve(&self, client: &Client) -> Result<Fingerprint, Failure> {
        let prefix = match self {
            Self::Whole(fingerprint) => return Ok(*fingerprint),
            Self::Begins(prefix) => prefix,
        };
        let entries = client.trust_list()?;
        let mut matches = entries.iter().filter(|entry| entry.fingerprint.to_string().starts_with(prefix));
        match (matches.next(), matches.next()) {
            (Some(entry), None) => Ok(entry.fingerprint),
            (None, _) => Err(Failure::Usage(format!("no identity begins with {prefix}: see `overbank trust list`"))),
            (Some(_), Some(_)) => {
                Err(Failure::Usage(format!("more than one identity begins with {prefix}: write more digits")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_named_whole_or_by_eight_digits_or_more() {
        let whole = "AB".repeat(20);
        assert_eq!(Named::parse(&whole).expect("whole"), Named::Whole(Fingerprint([0xab; 20])));
        assert_eq!(Named::parse("ABCD0123").expect("enough"), Named::Begins("abcd0123".to_owned()));
        for bad in ["", "abcd012", "xbcd0123", &"a".repeat(41), "éééééééé"] {
            assert!(matches!(Named::parse(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn an_export_is_an_import_and_nothing_else_is() {
        let key = PublicKey([7; 32]);
        let entry = TrustEntry {
            key,
            fingerprint: key.fingerprint(),
            state: TrustState::Trusted,
            role: Some(Role::Consumer),
            tenant: Some("blue".parse().expect("a name")),
            last_seen_from: None,
            name: Some("node 7".parse().expect("a name")),
        };
        let text = transfer_of(std::slice::from_ref(&entry)).to_string();
        let import = Import { key, role: entry.role, tenant: entry.tenant.clone(), name: entry.name.clone() };
        assert_eq!(parse_transfer(&text), Ok(vec![import]));
        let revoked = transfer_of(&[TrustEntry { state: TrustState::Revoked, ..entry }]).to_string();
        assert_eq!(parse_transfer(&revoked).expect("an export")[0].role, None, "never trusted again");
        for bad in [
            "",
            "{}",
            &text.replace("trusted", "pending"),
            &text.replace(&hex(&[7; 32]), &hex(&[8; 32])),
            &text.replace("\"overbank_trust\":1", "\"overbank_trust\":2"),
            &text.replace("node 7", "\\u001b[31m"),
        ] {
            assert!(parse_transfer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn consumers_have_a_tenant_and_nobody_else() {
        let blue: Option<Tenant> = Some("blue".parse().expect("a name"));
        assert!(RoleArgs { role: Role::Consumer, tenant: blue.clone() }.check().is_ok());
        assert!(RoleArgs { role: Role::Consumer, tenant: None }.check().is_err());
        for role in [Role::Provider, Role::Operator] {
            assert!(RoleArgs { role, tenant: None }.check().is_ok());
            assert!(RoleArgs { role, tenant: blue.clone() }.check().is_err());
        }
    }
}
