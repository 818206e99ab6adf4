//! From claimed rows to the message that leaves: texts in the user's language, the address, several items as one.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::contacts::{self, Contact};
use super::dispatch::{Claim, Job};
use super::kinds::DeliveryChannel;
use super::senders::{DeliveryId, Outgoing, PushSubscription, RenderedEmail, Target};
use super::template::{Action, Body};
use super::templates::TemplateUse;
use super::{Notifications, NotifyError, now_ms};
use crate::store::{Arg, StoreError};

/// Items of a digest whose titles are listed.
const LISTED_MAX: usize = 50;

/// What is to be sent for a job.
pub(super) enum Parcel {
    /// This.
    Ready(Box<Outgoing>),
    /// Nothing, for good.
    Nothing(Cow<'static, str>),
}

/// A notification as it was stored.
struct Stored {
    category: String,
    content: Value,
    template: Option<String>,
    collapse_key: Option<String>,
    expires_at: Option<i64>,
}

/// Texts of one message.
struct Texts {
    title: String,
    message: String,
    action: Option<Action>,
    metadata: Option<Box<RawValue>>,
    html: Option<String>,
}

impl Notifications {
    /// What leaves for a job.
    pub(super) async fn parcel(&self, job: &Job) -> Result<Parcel, NotifyError> {
        let (stored, contacts) = self.store.run(self.read_parcel(job)).await?;
        let now = now_ms();
        let alive = |claim: &&Claim| {
            stored.get(&claim.notification).is_some_and(|n| n.expires_at.is_none_or(|at| at > now))
        };
        let claims: Vec<&Claim> = job.claims.iter().filter(alive).collect();
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return Ok(Parcel::Nothing("it has expired before it could be sent".into()));
        };
        let target = match self.target(first, contacts.get(&first.contact)) {
            Ok(target) => target,
            Err(why) => return Ok(Parcel::Nothing(why)),
        };
        let mut texts = Vec::with_capacity(claims.len());
        for claim in &claims {
            let Some(stored) = stored.get(&claim.notification) else { continue };
            texts.push(self.texts(claim, stored).await?);
        }
        let Some(texts) = joined(texts) else {
            return Ok(Parcel::Nothing("there is nothing to be sent".into()));
        };
        let Some(delivery) = DeliveryId::parse(&delivery_id(first)) else {
            return Ok(Parcel::Nothing("it has no id".into()));
        };
        let notification = stored.get(&first.notification);
        let email = (first.channel == DeliveryChannel::Email).then(|| mail(&texts));
        Ok(Parcel::Ready(Box::new(Outgoing {
            delivery,
            notification: last.notification.clone(),
            user: first.user.clone(),
            category: notification.map(|n| n.category.clone()).unwrap_or_default(),
            priority: first.priority,
            title: texts.title,
            message: texts.message,
            action: texts.action,
            metadata: texts.metadata,
            email,
            collapse_key: notification.and_then(|n| n.collapse_key.clone()),
            target,
        })))
    }

    async fn read_parcel(
        &self,
        job: &Job,
    ) -> Result<(HashMap<String, Stored>, HashMap<i64, Contact>), StoreError> {
        let ids: Vec<&str> = job.claims.iter().map(|claim| claim.notification.as_str()).collect();
        let locale = job.claims[0].locale.as_deref().unwrap_or_default();
        let mut transaction = self.store.begin_read().await?;
        let sql = format!(
            "SELECT n.id, n.category, coalesce(t.content, n.content), n.template, n.collapse_key, n.expires_at \
             FROM archmesh_notifications n LEFT JOIN archmesh_notification_texts t \
             ON t.notification_id = n.id AND t.locale = $2 WHERE n.id IN {}",
            transaction.dialect().texts("$1")
        );
        let ids = json!(ids).to_string();
        let mut stored = HashMap::new();
        for row in transaction.fetch(sql, &[Arg::Text(&ids), Arg::Text(locale)]).await? {
            let content = serde_json::from_str(&row.text(2)?);
            let notification = Stored {
                category: row.text(1)?,
                content: content
                    .map_err(|_| StoreError::Unexpected("a content that is no JSON"))?,
                template: row.maybe_text(3)?,
                collapse_key: row.maybe_text(4)?,
                expires_at: row.maybe_int(5)?,
            };
            stored.insert(row.text(0)?, notification);
        }
        let contacts: Vec<i64> = job.claims.iter().map(|claim| claim.contact).collect();
        let contacts = contacts::by_id(&mut transaction, &contacts).await?;
        transaction.commit().await?;
        Ok((stored, contacts))
    }

    fn target(
        &self,
        claim: &Claim,
        contact: Option<&Contact>,
    ) -> Result<Target, Cow<'static, str>> {
        let address = || {
            let gone = "the user has no such address any more";
            contact.map(|contact| contact.address.clone()).ok_or(Cow::from(gone))
        };
        Ok(match claim.channel {
            DeliveryChannel::Email => Target::Email(address()?),
            DeliveryChannel::Sms => Target::Phone(address()?),
            DeliveryChannel::WebPush => {
                let insecure = self.channels.allows_insecure_browsers();
                let subscription = PushSubscription::parse(&address()?, insecure);
                Target::WebPush(subscription.map_err(|error| Cow::from(error.to_string()))?)
            }
            DeliveryChannel::Webhook | DeliveryChannel::InApp => Target::None,
        })
    }

    /// The texts for one delivery channel: of the template when there is one, of the content otherwise.
    async fn texts(&self, claim: &Claim, stored: &Stored) -> Result<Texts, NotifyError> {
        let text = |name: &str| stored.content[name].as_str().unwrap_or_default().to_owned();
        let metadata = stored.content.get("metadata").map(Value::to_string);
        let mut texts = Texts {
            title: text("title"),
            message: text("message"),
            action: serde_json::from_value(stored.content["action"].clone()).ok(),
            metadata: metadata.and_then(|text| RawValue::from_string(text).ok()),
            html: None,
        };
        let Some(template) = &stored.template else { return Ok(texts) };
        let Ok(template) = serde_json::from_str::<TemplateUse>(template) else { return Ok(texts) };
        let (_, compiled) = self.template(&template.name, Some(template.version)).await?;
        let locale = claim.locale.as_deref();
        // It rendered when it was sent; what fails now leaves the texts of the inbox.
        let Ok(rendered) = compiled.render(locale, claim.channel, &template.variables) else {
            return Ok(texts);
        };
        texts.action = rendered.action.or(texts.action);
        match rendered.body {
            Body::Email { subject, text, html } => {
                (texts.title, texts.message, texts.html) = (subject, text, html);
            }
            Body::InApp { title, message }
            | Body::Webhook { title, message }
            | Body::WebPush { title, body: message } => {
                (texts.title, texts.message) = (title, message);
            }
            Body::Sms { text } => texts.message = text,
        }
        Ok(texts)
    }
}

/// The same in all attempts, and in no other database.
fn delivery_id(claim: &Claim) -> String {
    format!("{}-{}-{}", claim.notification, claim.channel, claim.contact)
}

/// One message for several: the newest title and how many more, then all titles, the newest first.
fn joined(mut texts: Vec<Texts>) -> Option<Texts> {
    let count = texts.len();
    let titles: Vec<String> =
        texts.iter().rev().take(LISTED_MAX).map(|text| text.title.clone()).collect();
    let newest = texts.pop()?;
    if count == 1 {
        return Some(newest);
    }
    Some(Texts {
        title: format!("{} (+{})", newest.title, count - 1),
        message: titles.join("\n"),
        action: None,
        metadata: None,
        html: None,
    })
}

/// The action is put below the text, where a mail without HTML has no other place for it.
fn mail(texts: &Texts) -> RenderedEmail {
    let action = texts.action.as_ref().filter(|action| action.url.starts_with("http"));
    let text = match action {
        Some(action) if !texts.message.contains(&action.url) => {
            format!("{}\n\n{}: {}", texts.message, action.label, action.url)
        }
        _ => texts.message.clone(),
    };
    RenderedEmail { subject: texts.title.clone(), text, html: texts.html.clone() }
}
