//! Addresses of users for delivery channels that need one.
//!
//! A user has at most one mail address and one phone number, and a bounded number of browsers. An address that a mail server or
//! push service calls dead is forgotten.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::kinds::DeliveryChannel;
use super::senders::PushSubscription;
use super::{Notifications, NotifyError, now_ms};
use crate::store::{Arg, Row, StoreError, Transaction};

/// Browsers of one user; the one that came first goes when there are more.
const BROWSERS_MAX: i64 = 10;
/// Bytes of an address that is not a browser's.
const ADDRESS_BYTES_MAX: usize = 254;

/// An address.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Contact {
    pub id: i64,
    pub user: String,
    pub channel: DeliveryChannel,
    pub address: String,
}

/// What changes in a user's addresses. The inner `None` forgets one.
#[derive(Debug, Default)]
#[allow(clippy::option_option, reason = "absent leaves an address, the inner None forgets it")]
pub(crate) struct ContactChange {
    /// Mail address.
    pub email: Option<Option<String>>,
    /// Phone number.
    pub phone: Option<Option<String>>,
    /// A browser's push subscription, as it gives it.
    pub web_push: Option<Value>,
    /// Endpoint of a subscription that has ended.
    pub web_push_removed: Option<String>,
}

/// A user's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contacts {
    /// Mail address.
    pub email: Option<String>,
    /// Phone number.
    pub phone: Option<String>,
    /// Number of browsers.
    pub browsers: usize,
}

fn contact(row: &Row) -> Result<Contact, StoreError> {
    let channel = row.text(2)?.parse();
    Ok(Contact {
        id: row.int(0)?,
        user: row.text(1)?,
        channel: channel.map_err(|_| StoreError::Unexpected("a delivery channel"))?,
        address: row.text(3)?,
    })
}

/// Addresses of several users.
pub(super) async fn of_users(
    transaction: &mut Transaction,
    users: &[&str],
) -> Result<HashMap<String, Vec<Contact>>, StoreError> {
    let sql = format!(
        "SELECT id, user_id, channel, address FROM archmesh_contacts WHERE user_id IN {} ORDER BY id",
        transaction.dialect().texts("$1")
    );
    let rows = transaction.fetch(sql, &[Arg::Text(&json!(users).to_string())]).await?;
    let mut contacts: HashMap<String, Vec<Contact>> = HashMap::new();
    for row in &rows {
        let contact = contact(row)?;
        contacts.entry(contact.user.clone()).or_default().push(contact);
    }
    Ok(contacts)
}

/// Addresses by their rows.
pub(super) async fn by_id(
    transaction: &mut Transaction,
    ids: &[i64],
) -> Result<HashMap<i64, Contact>, StoreError> {
    let sql = format!(
        "SELECT id, user_id, channel, address FROM archmesh_contacts WHERE id IN {}",
        transaction.dialect().numbers("$1")
    );
    let rows = transaction.fetch(sql, &[Arg::Text(&json!(ids).to_string())]).await?;
    rows.iter().map(|row| contact(row).map(|contact| (contact.id, contact))).collect()
}

/// A plain check: that somebody reads the mail is not known before it was sent.
fn check_email(address: &str) -> Result<(), NotifyError> {
    let (name, domain) = address.rsplit_once('@').unwrap_or_default();
    let odd =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>' | ',' | ';' | '"');
    if name.is_empty()
        || domain.is_empty()
        || address.len() > ADDRESS_BYTES_MAX
        || address.contains(odd)
    {
        return Err(NotifyError::Invalid(
            "`email` is no mail address such as ann@example.com".to_owned(),
        ));
    }
    Ok(())
}

fn check_phone(number: &str) -> Result<(), NotifyError> {
    let digits = number.strip_prefix('+').unwrap_or(number);
    if !(5..=15).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let problem = "`phone` is no phone number such as +493012345678: 5 to 15 digits, with or without a plus";
        return Err(NotifyError::Invalid(problem.to_owned()));
    }
    Ok(())
}

impl Notifications {
    /// Changes a user's addresses, and tells how they are then.
    pub(crate) async fn contacts(
        &self,
        user: &str,
        change: ContactChange,
    ) -> Result<Contacts, NotifyError> {
        if let Some(Some(email)) = &change.email {
            check_email(email)?;
        }
        if let Some(Some(phone)) = &change.phone {
            check_phone(phone)?;
        }
        let subscription = match &change.web_push {
            Some(document) => Some(self.subscription(document)?),
            None => None,
        };
        let work = async {
            let mut transaction = self.store.begin().await?;
            for (channel, change) in
                [(DeliveryChannel::Email, &change.email), (DeliveryChannel::Sms, &change.phone)]
            {
                if let Some(address) = change {
                    forget(&mut transaction, user, channel).await?;
                    if let Some(address) = address {
                        add(&mut transaction, user, channel, address).await?;
                    }
                }
            }
            if let Some(endpoint) = &change.web_push_removed {
                forget_browser(&mut transaction, user, endpoint).await?;
            }
            if let Some(subscription) = &subscription {
                forget_browser(&mut transaction, user, subscription.endpoint().as_str()).await?;
                let json = subscription.to_json();
                add(&mut transaction, user, DeliveryChannel::WebPush, &json).await?;
                forget_oldest_browsers(&mut transaction, user).await?;
            }
            let mut contacts = of_users(&mut transaction, &[user]).await?;
            let contacts = contacts.remove(user).unwrap_or_default();
            transaction.commit().await?;
            Ok(contacts)
        };
        let contacts = self.store.run(work).await?;
        self.cached.forget_contacts(user).await;
        let of = |channel: DeliveryChannel| contacts.iter().filter(move |c| c.channel == channel);
        Ok(Contacts {
            email: of(DeliveryChannel::Email).next().map(|contact| contact.address.clone()),
            phone: of(DeliveryChannel::Sms).next().map(|contact| contact.address.clone()),
            browsers: of(DeliveryChannel::WebPush).count(),
        })
    }

    fn subscription(&self, document: &Value) -> Result<PushSubscription, NotifyError> {
        let allow_insecure = self.channels.allows_insecure_browsers();
        PushSubscription::parse(&document.to_string(), allow_insecure)
            .map_err(|error| NotifyError::Invalid(format!("`web_push`: {error}")))
    }

    /// An address is dead.
    pub(super) async fn forget_contact(&self, user: &str, id: i64) -> Result<(), StoreError> {
        self.store.write("DELETE FROM archmesh_contacts WHERE id = $1", &[Arg::Int(id)]).await?;
        self.cached.forget_contacts(user).await;
        Ok(())
    }
}

async fn add(
    transaction: &mut Transaction,
    user: &str,
    channel: DeliveryChannel,
    address: &str,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO archmesh_contacts (user_id, channel, address, created_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT DO NOTHING";
    let args =
        [Arg::Text(user), Arg::Text(channel.as_str()), Arg::Text(address), Arg::Int(now_ms())];
    transaction.execute(sql, &args).await?;
    Ok(())
}

async fn forget(
    transaction: &mut Transaction,
    user: &str,
    channel: DeliveryChannel,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM archmesh_contacts WHERE user_id = $1 AND channel = $2";
    transaction.execute(sql, &[Arg::Text(user), Arg::Text(channel.as_str())]).await?;
    Ok(())
}

/// The endpoint is what names a subscription; its keys may change.
async fn forget_browser(
    transaction: &mut Transaction,
    user: &str,
    endpoint: &str,
) -> Result<(), StoreError> {
    let part = match transaction.dialect() {
        crate::store::Dialect::Postgres => "address::json ->> 'endpoint'",
        crate::store::Dialect::Sqlite => "address ->> '$.endpoint'",
    };
    let sql = format!(
        "DELETE FROM archmesh_contacts WHERE user_id = $1 AND channel = 'web_push' AND {part} = $2"
    );
    transaction.execute(sql, &[Arg::Text(user), Arg::Text(endpoint)]).await?;
    Ok(())
}

async fn forget_oldest_browsers(
    transaction: &mut Transaction,
    user: &str,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM archmesh_contacts WHERE user_id = $1 AND channel = 'web_push' AND id NOT IN \
               (SELECT id FROM archmesh_contacts WHERE user_id = $1 AND channel = 'web_push' ORDER BY id DESC LIMIT $2)";
    transaction.execute(sql, &[Arg::Text(user), Arg::Int(BROWSERS_MAX)]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["ann@example.com", "a.b+c@x.example", "ü@example.com"] {
            assert!(check_email(good).is_ok(), "{good}");
        }
        for bad in ["", "ann", "@x", "a@", "a b@x", "a@x\r\nBcc: b@x", "A <a@x>", &"x".repeat(300)]
        {
            assert!(check_email(bad).is_err(), "{bad}");
        }
        for good in ["+493012345678", "12345"] {
            assert!(check_phone(good).is_ok(), "{good}");
        }
        for bad in ["", "+", "1234", "+49 30 1", "1234567890123456", "abc12345"] {
            assert!(check_phone(bad).is_err(), "{bad}");
        }
    }
}
