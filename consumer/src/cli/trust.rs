//! `trust`: what operators do with identities.

use std::time::Duration;

use clap::Subcommand;
use overbank::{Client, Fingerprint, Role, Tenant, TrustEntry};
use serde_json::json;

use super::exit::Failure;
use super::identity::{describe, entry_json};
use super::output::{printable, table};
use super::{Context, some_time};

/// Fewest digits that name an identity.
const FEWEST: usize = 8;

/// Who is trusted.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all identities: pending, trusted, revoked
    List,
    /// Trust a pending identity
    #[command(after_help = "\
Example:
  overbank trust approve 5b02aa17 --role consumer --tenant blue")]
    Approve {
        /// Its fingerprint, or the first 8 or more digits of it
        fingerprint: String,
        #[command(flatten)]
        role: RoleArgs,
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
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                let entry = client.trust_approve(named.resolve(&client)?, role, tenant)?;
                show(context, &entry)
            }
            Self::Revoke { fingerprint } => {
                let named = Named::parse(&fingerprint)?;
                let client = context.connect()?;
                let entry = client.trust_revoke(named.resolve(&client)?)?;
                show(context, &entry)
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

fn show(context: &Context, entry: &TrustEntry) -> Result<(), Failure> {
    context.output.answer(&format!("{}  {}", entry.fingerprint, describe(entry)), &entry_json(entry))
}

fn list(context: &Context) -> Result<(), Failure> {
    let entries = context.connect()?.trust_list()?;
    let mut rows = vec![["FINGERPRINT", "STATE", "ROLE", "TENANT", "LAST SEEN FROM"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            entry.fingerprint.to_string(),
            entry.state.to_string(),
            entry.role.map_or_else(|| "-".to_owned(), |role| role.to_string()),
            entry.tenant.as_ref().map_or_else(|| "-".to_owned(), |tenant| tenant.to_string()),
            printable(entry.last_seen_from.as_deref().unwrap_or("-")),
        ]
    }));
    let answer = json!({ "identities": entries.iter().map(entry_json).collect::<Vec<_>>() });
    context.output.answer(&table(&rows), &answer)
}

/// An identity as people name it.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Whole(Fingerprint),
    Begins(String),
}

impl Named {
    fn parse(text: &str) -> Result<Self, Failure> {
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

    fn resolve(&self, client: &Client) -> Result<Fingerprint, Failure> {
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
