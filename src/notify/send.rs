//! From a checked request to a change of the store: what is said to whom, by which ways, and when.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::change::{Applied, Change, Held, Notification, Recipient};
use super::contacts::Contact;
use super::kinds::{DeliveryChannel, Priority};
use super::preferences::{Decision, Delivery, Preferences, decide};
use super::request::Source;
use super::template::Template;
use super::templates::{self, TemplateUse};
use super::{Accepted, Draft, Notifications, NotifyError, now_ms};
use crate::store::StoreError;

/// A notification that only has to be written.
#[derive(Debug)]
pub(crate) struct Prepared {
    change: Change,
    delivered: usize,
    held: usize,
    queued: usize,
    opted_out: usize,
    no_address: usize,
}

/// Recipients, sorted by what becomes of the notification for them.
#[derive(Default)]
struct Plan {
    now: Vec<Recipient>,
    later: Vec<Held>,
    held: usize,
    queued: usize,
    opted_out: usize,
    no_address: usize,
}

/// The template of a notification, ready to be rendered.
struct Texts {
    template: Arc<Template>,
    used: TemplateUse,
    /// Locale of the content.
    fallback: String,
    metadata: Option<String>,
}

impl Notifications {
    /// Finds out what a notification means for its users: who gets it now, or when their preferences say.
    pub(crate) async fn prepare(&self, draft: &Draft) -> Result<Prepared, NotifyError> {
        let now_ms = now_ms();
        let (mut notification, texts) = self.compose(draft, now_ms).await?;
        let channels = self.channels_of(draft);
        let users = &draft.users;
        let preferences = self.preferences_of(users).await?;
        let contacts = self.contacts_of(users, &channels).await?;
        let nothing = Preferences::default();
        let mut plan = Plan::default();
        let mut locales: HashMap<String, Option<Arc<str>>> = HashMap::new();
        for user in users {
            let own = preferences.get(user).unwrap_or(&nothing);
            let locale = match (&texts, own.locale()) {
                (Some(texts), Some(wanted)) => {
                    if !locales.contains_key(wanted) {
                        let added = texts.add(&mut notification, wanted)?;
                        locales.insert(wanted.to_owned(), added);
                    }
                    locales[wanted].clone()
                }
                _ => None,
            };
            let to = Recipient { user: user.clone(), locale };
            let addresses = contacts.get(user).map(|all| all.as_slice()).unwrap_or_default();
            let begin = draft.deliver_at.unwrap_or(now_ms);
            let before = (plan.now.len(), plan.later.len());
            let mut is_wanted = false;
            for &channel in &channels {
                let what = Delivery {
                    category: &notification.category,
                    channel,
                    priority: notification.priority,
                };
                let decision = decide(own, &self.defaults, what, begin);
                let is_now = draft.deliver_at.is_none();
                is_wanted |= !matches!(decision, Decision::Drop(_));
                plan.add((&to, addresses), channel, (decision, begin, is_now));
            }
            if before == (plan.now.len(), plan.later.len()) {
                plan.no_address += usize::from(is_wanted);
                plan.opted_out += usize::from(!is_wanted);
            }
        }
        let Plan { now, later, held, queued, opted_out, no_address } = plan;
        let delivered = now.len();
        let change = Change::Send { notification: Arc::new(notification), now, later };
        Ok(Prepared { change, delivered, held, queued, opted_out, no_address })
    }

    /// Sends what was prepared. Those that are begun one after the other are written in this order.
    pub(crate) async fn send(&self, prepared: Prepared) -> Result<Accepted, NotifyError> {
        let Prepared { change, delivered, held, queued, opted_out, no_address } = prepared;
        match self.writer.write(change).await? {
            Applied::Sent { id, duplicate } => {
                let accepted =
                    Accepted { id, duplicate, delivered, held, queued, opted_out, no_address };
                self.count(&accepted);
                Ok(accepted)
            }
            _ => Err(StoreError::Unexpected("another outcome than was asked for").into()),
        }
    }

    /// The notification with the texts of its content, and its template when it has one.
    async fn compose(
        &self,
        draft: &Draft,
        now_ms: i64,
    ) -> Result<(Notification, Option<Texts>), NotifyError> {
        let (content, texts) = match &draft.source {
            Source::Given(content) => (content.clone(), None),
            Source::Template(request) => {
                let version = request.version.map(|version| i64::try_from(version).unwrap_or(-1));
                let (version, template) = self.template(&request.name, version).await?;
                let variables = request.variables.clone();
                let (fallback, content) = templates::content(&template, None, &variables)?;
                let used = TemplateUse { name: request.name.clone(), version, variables };
                let metadata = draft.metadata.clone();
                (content, Some(Texts { template, used, fallback, metadata }))
            }
        };
        let of_template = texts.as_ref().map(|texts| &texts.template);
        let category = draft.category.clone().or_else(|| of_template?.category().cloned());
        let Some(category) = category else {
            return Err(NotifyError::Invalid(
                "missing field `category`: the template has none".to_owned(),
            ));
        };
        let priority = draft.priority.or_else(|| of_template?.priority());
        let template = texts.as_ref().map(|texts| serde_json::json!(texts.used).to_string());
        let notification = Notification {
            id: uuid::Uuid::now_v7().to_string(),
            idempotency_key: draft.idempotency_key.clone(),
            category,
            priority: priority.unwrap_or(Priority::Normal),
            content: with_metadata(&content, draft.metadata.as_deref()),
            texts: BTreeMap::new(),
            template,
            collapse_key: draft.collapse_key.clone(),
            created_at: now_ms,
            expires_at: draft.expires_at,
        };
        Ok((notification, texts))
    }

    fn channels_of(&self, draft: &Draft) -> Vec<DeliveryChannel> {
        let wanted = |kind: &DeliveryChannel| {
            draft.channels.as_ref().is_none_or(|channels| channels.contains(kind))
        };
        let all = DeliveryChannel::ALL.into_iter();
        all.filter(wanted).filter(|kind| self.channels.has(*kind)).collect()
    }

    async fn contacts_of(
        &self,
        users: &[String],
        channels: &[DeliveryChannel],
    ) -> Result<HashMap<String, Arc<Vec<Contact>>>, NotifyError> {
        if !channels.iter().any(|channel| needs_address(*channel)) {
            return Ok(HashMap::new());
        }
        let contacts = self.cached.contacts(&self.store, users).await?;
        let of_user = |(user, contacts): (&String, Option<Arc<Vec<Contact>>>)| {
            Some((user.clone(), contacts?))
        };
        Ok(users.iter().zip(contacts).filter_map(of_user).collect())
    }
}

/// Whether a delivery channel reaches a user by an address.
fn needs_address(channel: DeliveryChannel) -> bool {
    matches!(channel, DeliveryChannel::Email | DeliveryChannel::Sms | DeliveryChannel::WebPush)
}

impl Plan {
    fn add(
        &mut self,
        (to, addresses): (&Recipient, &[Contact]),
        channel: DeliveryChannel,
        (decision, begin, is_now): (Decision, i64, bool),
    ) {
        let (due_at, digest_key) = match decision {
            Decision::Drop(_) => return,
            Decision::Send if is_now && channel == DeliveryChannel::InApp => {
                self.now.push(to.clone());
                return;
            }
            Decision::Send => (begin, None),
            Decision::Hold { until_ms } => (until_ms, None),
            Decision::Digest { due_ms, key } => (due_ms, Some(key.to_string())),
        };
        let contacts: Vec<i64> = if needs_address(channel) {
            addresses.iter().filter(|contact| contact.channel == channel).map(|c| c.id).collect()
        } else {
            vec![0]
        };
        if channel == DeliveryChannel::InApp {
            self.held += 1;
        } else {
            self.queued += contacts.len();
        }
        self.later.extend(contacts.into_iter().map(|contact| Held {
            recipient: to.clone(),
            channel,
            contact,
            due_at,
            digest_key: digest_key.clone(),
        }));
    }
}

impl Texts {
    /// Renders the text for a wanted locale; the locale that it is in, when that is not the one of the content.
    fn add(
        &self,
        notification: &mut Notification,
        locale: &str,
    ) -> Result<Option<Arc<str>>, NotifyError> {
        let (rendered, content) =
            templates::content(&self.template, Some(locale), &self.used.variables)?;
        if rendered == self.fallback {
            return Ok(None);
        }
        let content = with_metadata(&content, self.metadata.as_deref());
        notification.texts.insert(rendered.clone(), content);
        Ok(Some(rendered.into()))
    }
}

/// JSON text of the content with the metadata in it as it was given.
fn with_metadata(content: &Value, metadata: Option<&str>) -> String {
    let mut content = content.to_string();
    if let Some(metadata) = metadata {
        content.pop();
        content += ",\"metadata\":";
        content += metadata;
        content.push('}');
    }
    content
}
