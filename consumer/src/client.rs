//! A borrower's (or an operator's) session with the auth daemon: one method for each thing it can be asked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_fabric::attach::{AttachAnswer, AttachRequest};
use overbank_fabric::audit;
use overbank_fabric::channel::{self, CallError, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{CorrelationId, Fingerprint, LeaseId};
use overbank_fabric::keyfile;
use overbank_fabric::message::{
    Attach, Call, CreateLease, Granted, Invitation, Join, LeaseInfo, RefusalCode, RenewLease, Reply, Status,
    TenantInfo, TrustEntry,
};
use overbank_fabric::signed::Signed;
use overbank_fabric::succession::{former, learn};
use overbank_fabric::token::Token;
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::config::Config;
use crate::error::{Error, ExpectedBy, printable};
use crate::local;
use crate::pins::{Pinned, Pins};

/// The fingerprint of the identity in the configuration's home, and whether it was made now.
///
/// # Errors
/// [`Error::KeyFile`] and [`Error::Pins`], the latter for a home that others can write in.
pub fn identity(config: &Config) -> Result<(Fingerprint, bool), Error> {
    let (identity, made) = load_identity(config)?;
    Ok((identity.public().fingerprint(), made))
}

/// The public key of the identity in the configuration's home, for who wants to share a lease with it.
///
/// # Errors
/// As [`identity`].
pub fn public_key(config: &Config) -> Result<PublicKey, Error> {
    Ok(load_identity(config)?.0.public())
}

/// The fingerprint of the key that is pinned for the configuration's auth daemon, if one is. Asks nobody.
///
/// # Errors
/// [`Error::Pins`].
pub fn pinned_authd(config: &Config) -> Result<Option<Fingerprint>, Error> {
    Ok(Pins::new(config.pins_path()).find(config.authd())?)
}

pub(crate) fn load_identity(config: &Config) -> Result<(Identity, bool), Error> {
    local::home_dir(config.home()).map_err(crate::pins::PinsError::from)?;
    Ok(keyfile::load_or_create(&config.identity_path())?)
}

/// A session with the auth daemon. Clones share it; their calls are made one after another.
///
/// A call returns within [`Config::deadline`], whatever the other side does. Where the session has broken, a call that
/// can be made twice without harm makes it anew, once.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: Config,
    keys: std::sync::Mutex<Keys>,
    first_contact: bool,
    /// Whether the identity is the one in the home, and follows it.
    of_home: bool,
    /// The key that the auth daemon had before, where it was followed to a new one.
    followed: Option<Fingerprint>,
    local: IpAddr,
    /// Gone only while it is dropped.
    runtime: Option<Runtime>,
    /// None once it broke, or while a call is under way: a call that is cut off takes its session with it.
    session: Mutex<Option<Channel<TcpStream>>>,
}

/// Who both sides are. Either may take a new key while this runs.
#[derive(Clone)]
struct Keys {
    identity: Arc<Identity>,
    authd: PublicKey,
}

/// Whether a call may be sent again on a new session after the old one broke under it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Harmless,
    Never,
}

impl Client {
    /// Connects, proves who both sides are, and holds the auth daemon to the key that it had before, or that
    /// [`Config::authd_fingerprint`] names. Makes this borrower's identity where there is none yet.
    ///
    /// # Errors
    /// [`Error::KeyFile`], [`Error::Pins`], [`Error::AuthdUnreachable`], [`Error::AuthdKeyChanged`].
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let (identity, _) = load_identity(config)?;
        Self::connect_with(config, identity, true)
    }

    /// The same, as that identity.
    pub(crate) fn connect_as(config: &Config, identity: Identity) -> Result<Self, Error> {
        Self::connect_with(config, identity, false)
    }

    fn connect_with(config: &Config, identity: Identity, of_home: bool) -> Result<Self, Error> {
        let pins = Pins::new(config.pins_path());
        let expected = match (config.authd_fingerprint, pins.find(config.authd())?) {
            (Some(named), Some(pinned)) if named != pinned => {
                let expected_by = ExpectedBy::Pin(pins.path().to_owned());
                return Err(Error::AuthdKeyChanged {
                    authd: config.authd().to_owned(),
                    expected: pinned,
                    got: named,
                    expected_by,
                });
            }
            (_, Some(pinned)) => Some((pinned, ExpectedBy::Pin(pins.path().to_owned()))),
            (Some(named), None) => Some((named, ExpectedBy::Caller)),
            (None, None) => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            let cause = format!("this system gives no event queue ({error})");
            Error::AuthdUnreachable { authd: config.authd().to_owned(), cause }
        })?;
        let opened = block_on(&runtime, async {
            timeout(config.deadline, open_or_follow(config, &identity, expected.as_ref())).await
        });
        let (session, followed) = opened.unwrap_or_else(|_| Err(silent(config)))?;
        if let Some(old) = followed {
            pins.repin(config.authd(), old, session.authd.fingerprint())?;
        }
        let pinned = pins.pin(config.authd(), session.authd.fingerprint())?;
        if let Pinned::Other(expected) = pinned {
            return Err(Error::AuthdKeyChanged {
                authd: config.authd().to_owned(),
                expected,
                got: session.authd.fingerprint(),
                expected_by: ExpectedBy::Pin(pins.path().to_owned()),
            });
        }
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            keys: std::sync::Mutex::new(Keys { identity: Arc::new(identity), authd: session.authd }),
            first_contact: pinned == Pinned::First,
            of_home,
            followed,
            local: session.local,
            runtime: Some(runtime),
            session: Mutex::new(Some(session.channel)),
        })))
    }

    /// Who we are.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity().public().fingerprint()
    }

    /// Who the auth daemon is.
    #[must_use]
    pub fn authd(&self) -> Fingerprint {
        self.authd_key().fingerprint()
    }

    /// Whether the auth daemon's key was pinned by this connection. Unless [`Config::authd_fingerprint`] named it, it was
    /// taken on trust, and people should be shown it.
    #[must_use]
    pub fn first_contact(&self) -> bool {
        self.0.first_contact
    }

    /// What this was connected with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Our address as the auth daemon's machine sees it: providers are likely to reach us there.
    #[must_use]
    pub fn local_address(&self) -> IpAddr {
        self.0.local
    }

    /// What the auth daemon makes of us. Allowed to everybody.
    ///
    /// # Errors
    /// As every call: [`Error::AuthdUnreachable`], [`Error::Deadline`], [`Error::Refused`], [`Error::MisbehavingAuthd`].
    pub fn who_am_i(&self) -> Result<TrustEntry, Error> {
        self.you(self.call("asking who we are", None, Repeat::Harmless, Call::WhoAmI)?)
    }

    /// Redeems an invitation. Allowed to everybody.
    ///
    /// # Errors
    /// [`Error::AuthdKeyChanged`] where another auth daemon made it (it is then not sent), [`Error::NotTrusted`] where it
    /// is used up, and what [`Client::who_am_i`] says.
    pub fn join(&self, invitation: &Invitation) -> Result<TrustEntry, Error> {
        if invitation.authd != self.authd() && Some(invitation.authd) != self.0.followed {
            return Err(Error::AuthdKeyChanged {
                authd: self.0.config.authd().to_owned(),
                expected: invitation.authd,
                got: self.authd(),
                expected_by: ExpectedBy::Caller,
            });
        }
        let join = Join { secret: invitation.secret };
        self.you(self.call("joining", None, Repeat::Never, Call::Join(join))?)
    }

    /// The pool as a whole; a consumer sees its own share.
    ///
    /// # Errors
    /// [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn status(&self) -> Result<Status, Error> {
        match self.call("asking for the status", None, Repeat::Harmless, Call::Status)? {
            Reply::Status(status) => Ok(status),
            reply => Err(odd(&reply)),
        }
    }

    /// One's own leases, those that are over included for a while; an operator sees all.
    ///
    /// # Errors
    /// [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, Error> {
        match self.call("listing leases", None, Repeat::Harmless, Call::ListLeases)? {
            Reply::Leases(leases) => Ok(leases),
            reply => Err(odd(&reply)),
        }
    }

    /// What has become of one lease.
    ///
    /// # Errors
    /// [`Error::LeaseOver`] where there is none of that id, [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn show_lease(&self, lease: LeaseId) -> Result<LeaseInfo, Error> {
        let reply = self.call("looking at the lease", Some(lease), Repeat::Harmless, Call::ShowLease(lease))?;
        one_lease(reply, lease)
    }

    pub(crate) fn ask_key_of(&self, fingerprint: Fingerprint) -> Result<PublicKey, Error> {
        match self.call("asking for a key", None, Repeat::Harmless, Call::KeyOf(fingerprint))? {
            Reply::Key(key) => Ok(key),
            reply => Err(odd(&reply)),
        }
    }

    /// The keys that the auth daemon had before the one that it has, as far as signed steps lead to that; the first the oldest.
    ///
    /// # Errors
    /// What [`Client::who_am_i`] says.
    pub fn former_keys(&self) -> Result<Vec<Fingerprint>, Error> {
        match self.call("asking for the auth daemon's former keys", None, Repeat::Harmless, Call::Successions)? {
            Reply::Successions(steps) => {
                Ok(former(&steps, &self.authd_key()).iter().map(PublicKey::fingerprint).collect())
            }
            reply => Err(odd(&reply)),
        }
    }

    /// A part of the audit log. Operators only.
    ///
    /// # Errors
    /// [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn audit(&self, query: &audit::Query) -> Result<audit::Page, Error> {
        match self.call("reading the audit log", None, Repeat::Harmless, Call::Audit(query.clone()))? {
            Reply::Audit(page) => Ok(*page),
            reply => Err(odd(&reply)),
        }
    }

    /// All tenants, what they have and may have. Operators only.
    ///
    /// # Errors
    /// [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn tenants(&self) -> Result<Vec<TenantInfo>, Error> {
        match self.call("listing tenants", None, Repeat::Harmless, Call::TenantList)? {
            Reply::Tenants(tenants) => Ok(tenants),
            reply => Err(odd(&reply)),
        }
    }

    /// The key that the auth daemon had at the last contact, where it has a new one since, which the old one has signed: the
    /// new one is pinned now, and people should be told.
    #[must_use]
    pub fn followed(&self) -> Option<Fingerprint> {
        self.0.followed
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, Keys> {
        self.0.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.keys().identity)
    }

    /// Whether the auth daemon has this key, or had it before: by steps that it can show.
    pub(crate) fn is_authd(&self, key: &PublicKey) -> bool {
        self.authd_key() == *key || self.former_keys().is_ok_and(|former| former.contains(&key.fingerprint()))
    }

    /// Whether this home has another identity by now: one that took over from this.
    fn has_new_identity(&self) -> bool {
        if !self.0.of_home {
            return false;
        }
        let Ok(identity) = keyfile::load(&self.0.config.identity_path()) else { return false };
        let mut keys = self.keys();
        let new = identity.public() != keys.identity.public();
        if new {
            keys.identity = Arc::new(identity);
        }
        new
    }

    pub(crate) fn authd_key(&self) -> PublicKey {
        self.keys().authd
    }

    pub(crate) fn create_lease(&self, create: CreateLease) -> Result<Granted, Error> {
        match self.call("creating the lease", None, Repeat::Harmless, Call::CreateLease(create))? {
            Reply::Granted(granted) => Ok(*granted),
            reply => Err(odd(&reply)),
        }
    }

    pub(crate) fn release_lease(&self, lease: LeaseId) -> Result<LeaseInfo, Error> {
        let reply = self.call("releasing the lease", Some(lease), Repeat::Harmless, Call::ReleaseLease(lease))?;
        one_lease(reply, lease)
    }

    pub(crate) fn renew_lease(&self, lease: LeaseId, ttl: Duration) -> Result<Granted, Error> {
        let renew = RenewLease { lease, ttl_ms: ms(ttl) };
        match self.call("renewing the lease", Some(lease), Repeat::Harmless, Call::RenewLease(renew))? {
            Reply::Granted(granted) if granted.lease == lease => Ok(*granted),
            reply => Err(odd(&reply)),
        }
    }

    /// Not repeated here: a provider binds a request's nonce once.
    pub(crate) fn attach(
        &self,
        lease: LeaseId,
        token: Token,
        request: Signed<AttachRequest>,
    ) -> Result<Signed<AttachAnswer>, Error> {
        let attach = Attach { lease, token, request };
        match self.call("attaching to the lease", Some(lease), Repeat::Never, Call::Attach(attach))? {
            Reply::Attached(answer) => Ok(answer),
            reply => Err(odd(&reply)),
        }
    }

    fn you(&self, reply: Reply) -> Result<TrustEntry, Error> {
        match reply {
            Reply::You(entry) if entry.key == self.identity().public() => Ok(entry),
            reply => Err(odd(&reply)),
        }
    }

    pub(crate) fn call(
        &self,
        what: &'static str,
        lease: Option<LeaseId>,
        repeat: Repeat,
        call: Call,
    ) -> Result<Reply, Error> {
        let deadline = self.0.config.deadline;
        let runtime = self.0.runtime.as_ref().expect("a client has its runtime until it is dropped");
        block_on(runtime, async {
            match timeout(deadline, self.converse(what, lease, repeat, call)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::Deadline { what, deadline }),
            }
        })
    }

    async fn converse(
        &self,
        what: &'static str,
        lease: Option<LeaseId>,
        repeat: Repeat,
        call: Call,
    ) -> Result<Reply, Error> {
        let until = Instant::now() + self.0.config.deadline;
        let mut session = self.0.session.lock().await;
        let correlation = CorrelationId::random();
        let mut tries = if repeat == Repeat::Harmless { 2 } else { 1 };
        loop {
            let mut channel = match session.take() {
                Some(channel) => channel,
                None => {
                    // A new session is as good as a second try can be.
                    tries = 1;
                    let expected = (self.authd(), ExpectedBy::Session);
                    let identity = self.identity();
                    let (session, followed) = open_or_follow(&self.0.config, &identity, Some(&expected)).await?;
                    if let Some(old) = followed {
                        let pins = Pins::new(self.0.config.pins_path());
                        pins.repin(self.0.config.authd(), old, session.authd.fingerprint())?;
                        self.keys().authd = session.authd;
                    }
                    session.channel
                }
            };
            let left = until.saturating_duration_since(Instant::now());
            tracing::debug!(%correlation, "{what}");
            match channel.call(correlation, ms(left).try_into().unwrap_or(u32::MAX), call.clone()).await {
                Ok(reply) => {
                    *session = Some(channel);
                    return Ok(reply);
                }
                // What is refused was not done: it can be asked again in another name.
                Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Revoked && self.has_new_identity() => {
                }
                Err(CallError::Refused(refusal)) => {
                    *session = Some(channel);
                    return Err(Error::refused(refusal, lease, correlation));
                }
                Err(CallError::Channel(error)) => {
                    tries -= 1;
                    if tries == 0 {
                        let cause = printable(&error.to_string());
                        return Err(Error::AuthdUnreachable { authd: self.0.config.authd().to_owned(), cause });
                    }
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nobody, not for a name server either.
            runtime.shutdown_background();
        }
    }
}

struct Session {
    channel: Channel<TcpStream>,
    authd: PublicKey,
    local: IpAddr,
}

/// Opens a session; where the auth daemon has a new key, which the expected one has signed, with that. The fingerprint: of
/// the key that it had.
async fn open_or_follow(
    config: &Config,
    identity: &Identity,
    expected: Option<&(Fingerprint, ExpectedBy)>,
) -> Result<(Session, Option<Fingerprint>), Error> {
    let changed = match (open_session(config, identity, expected).await, expected) {
        (Err(changed @ Error::AuthdKeyChanged { .. }), Some(_)) => changed,
        (opened, _) => return opened.map(|session| (session, None)),
    };
    let Some((old, _)) = expected else { return Err(changed) };
    let asked = async { learn(TcpStream::connect(config.authd()).await.ok()?, old).await };
    // Who has another key and then says nothing is not to pass for one that is away.
    let Ok(Some((new, _))) = timeout(config.deadline / 4, asked).await else { return Err(changed) };
    let session = open_session(config, identity, Some(&(new.fingerprint(), ExpectedBy::Session))).await?;
    Ok((session, Some(*old)))
}

async fn open_session(
    config: &Config,
    identity: &Identity,
    expected: Option<&(Fingerprint, ExpectedBy)>,
) -> Result<Session, Error> {
    let unreachable = |cause: String| Error::AuthdUnreachable { authd: config.authd().to_owned(), cause };
    let stream = TcpStream::connect(config.authd()).await.map_err(|error| unreachable(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    let local = stream.local_addr().map_err(|error| unreachable(error.to_string()))?.ip().to_canonical();
    let mut changed = None;
    let check = |key: &PublicKey| match expected {
        Some((expected, by)) if *expected != key.fingerprint() => {
            changed = Some(Error::AuthdKeyChanged {
                authd: config.authd().to_owned(),
                expected: *expected,
                got: key.fingerprint(),
                expected_by: by.clone(),
            });
            Err("its key is not the one that it had".to_owned())
        }
        _ => Ok(()),
    };
    let outcome = channel::connect(stream, identity, Party::Client, check).await;
    if let Some(changed) = changed {
        return Err(changed);
    }
    let (channel, peer) = outcome.map_err(|error| unreachable(printable(&error.to_string())))?;
    if peer.party != Party::Authd {
        return Err(unreachable("what listens there is no auth daemon".to_owned()));
    }
    Ok(Session { channel, authd: peer.key, local })
}

fn silent(config: &Config) -> Error {
    let cause = format!("no answer within {}", overbank_fabric::units::show_duration(config.deadline));
    Error::AuthdUnreachable { authd: config.authd().to_owned(), cause }
}

/// Runs on this thread, or on one of its own where this thread belongs to somebody's runtime already.
fn block_on<T: Send>(runtime: &Runtime, work: impl Future<Output = T> + Send) -> T {
    if Handle::try_current().is_err() {
        return runtime.block_on(work);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(work)).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(crate) fn one_lease(reply: Reply, lease: LeaseId) -> Result<LeaseInfo, Error> {
    match reply {
        Reply::Leases(mut leases) if leases.len() == 1 && leases[0].lease == lease => Ok(leases.remove(0)),
        reply => Err(odd(&reply)),
    }
}

pub(crate) fn odd(reply: &Reply) -> Error {
    let what = match reply {
        Reply::Done => "'done'",
        Reply::You(_) => "somebody's identity",
        Reply::Granted(_) => "a grant",
        Reply::Leases(_) => "a list of leases",
        Reply::Attached(_) => "an attach",
        Reply::Status(_) => "a status",
        Reply::Key(_) => "a key",
        Reply::Trust(_) => "a list of identities",
        Reply::Invitation(_) => "an invitation",
        Reply::Tenants(_) => "a list of tenants",
        Reply::Audit(_) => "a part of the audit log",
        Reply::Imported(_) => "an import",
        Reply::Stopped(_) => "a number of leases",
        Reply::Proposed(_) => "a proposal",
        Reply::Proposals(_) => "a list of proposals",
        Reply::Successions(_) => "a list of successions",
    };
    Error::MisbehavingAuthd(format!("{what} that was not asked for"))
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
