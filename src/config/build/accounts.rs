//! `account`, `[accounts.NAME]` and `[[clients]]`: who calls, and whose key pays.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::Context;
use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::quoted;
use crate::config::source::{Found, Source, Spring};
use crate::config::{Account, Client, Plan, Rules, Secret, suggest};

/// What the three keys come to.
pub(super) struct Accounts {
    /// Index into `used`.
    pub(super) default: usize,
    /// The accounts that the default or a client names.
    pub(super) used: Vec<Account>,
    pub(super) clients: Vec<Client>,
}

/// An account of the file, before its key is fetched.
struct Draft<'a> {
    name: &'a str,
    section: Section<'a>,
    description: Option<String>,
    plan: Option<Arc<Plan>>,
    source: Option<Source>,
    rules: Rules,
}

/// A client of the file, its account as an index into the drafts.
struct Caller {
    name: String,
    token: Option<Secret>,
    account: Option<usize>,
    plan: Option<Arc<Plan>>,
    weight: NonZeroU32,
}

pub(super) fn read(root: &Section<'_>, plans: &[Arc<Plan>], context: &mut Context<'_>) -> Option<Accounts> {
    let drafts: Vec<Draft<'_>> =
        root.named("accounts").into_iter().map(|(name, section)| draft(name, section, plans, context)).collect();
    let default = default_account(root, &drafts);
    let callers = callers(root, &drafts, default, plans, context);
    let is_used = |index: usize| default == Some(index) || callers.iter().any(|caller| caller.account == Some(index));
    let mut used = Vec::new();
    let mut places = vec![None; drafts.len()];
    for (index, draft) in drafts.into_iter().enumerate().filter(|(index, _)| is_used(*index)) {
        let account = account(draft, context);
        if let Some(place) = places.get_mut(index) {
            *place = Some(used.len());
        }
        used.extend(account);
    }
    let place = |index: Option<usize>| places.get(index?).copied().flatten();
    let client = |caller: Caller| {
        let account = place(caller.account)?;
        Some(Client { name: caller.name, token: caller.token?, account, plan: caller.plan, weight: caller.weight })
    };
    Some(Accounts { default: place(default)?, used, clients: callers.into_iter().filter_map(client).collect() })
}

fn draft<'a>(name: &'a str, section: Section<'a>, plans: &[Arc<Plan>], context: &Context<'_>) -> Draft<'a> {
    check_name(name, &section);
    section.demand("plan", "name one of [plans], like plan = \"free\"");
    let help = "write key = { env = \"CORE_API_KEY\" }";
    let source = section.required("key", help, Source::parse);
    Draft {
        name,
        description: section.read("description", |value| text(value).map(str::to_owned)),
        plan: plan(&section, plans),
        source: trusted(source, &section, "key", context),
        rules: super::rules::read(&section),
        section,
    }
}

/// The plan that `plan` names.
fn plan(section: &Section<'_>, plans: &[Arc<Plan>]) -> Option<Arc<Plan>> {
    section.read("plan", |value| {
        let name = text(value)?;
        plans.iter().find(|plan| plan.name == name).cloned().ok_or_else(|| {
            let names = plans.iter().map(|plan| plan.name.as_str());
            let complaint = Complaint::new(format!("names no plan: there is no [plans.{}]", unticked(name)));
            complaint.maybe_help(suggest::help(name, names))
        })
    })
}

/// A file that only lay in the directory may not run commands.
pub(super) fn trusted(
    source: Option<Source>,
    section: &Section<'_>,
    key: &str,
    context: &Context<'_>,
) -> Option<Source> {
    if matches!(source, Some(Source::Command(..))) && !context.trusted {
        let complaint = Complaint::new("may not run a command: this file was only found in the directory");
        section.complain(key, complaint.help("if you trust the file, name it: --config proxy.toml"));
        return None;
    }
    source
}

fn default_account(root: &Section<'_>, drafts: &[Draft<'_>]) -> Option<usize> {
    if drafts.is_empty() {
        if !root.has("accounts") {
            let help = "add [accounts.dev-local] with plan and key; `sluicegate init` writes an example";
            root.complain("accounts", Complaint::new("is missing").help(help));
        }
        return None;
    }
    if !root.has("account") {
        if drafts.len() == 1 {
            return Some(0);
        }
        let complaint = Complaint::new("is missing: there are several accounts, and one must serve by default");
        let first = drafts.first().map_or("", |draft| draft.name);
        root.complain("account", complaint.help(format!("add account = \"{}\" at the top", unticked(first))));
        return None;
    }
    root.read("account", |value| find_account(value, drafts))
}

fn find_account(value: &Value, drafts: &[Draft<'_>]) -> Result<usize, Complaint> {
    let name = text(value)?;
    drafts.iter().position(|draft| draft.name == name).ok_or_else(|| {
        let complaint = Complaint::new(format!("names no account: there is no [accounts.{}]", unticked(name)));
        complaint.maybe_help(suggest::help(name, drafts.iter().map(|draft| draft.name)))
    })
}

fn account(draft: Draft<'_>, context: &mut Context<'_>) -> Option<Account> {
    let found = resolve(draft.source.as_ref(), &draft.section, "key", context)?;
    Some(Account {
        name: draft.name.to_owned(),
        description: draft.description,
        plan: draft.plan?,
        key: found.secret,
        key_origin: found.origin,
        spring: Spring::new(draft.source.as_ref()?, &context.env, context.surroundings.directory),
        rules: draft.rules,
    })
}

pub(super) fn resolve(
    source: Option<&Source>,
    section: &Section<'_>,
    key: &str,
    context: &mut Context<'_>,
) -> Option<Found> {
    let source = source?;
    if let Some(file) = source.file(context.surroundings.directory) {
        context.watch.look_at(file);
    }
    match source.resolve(&context.surroundings) {
        Ok(found) => {
            context.warnings.extend(found.warning.clone());
            Some(found)
        }
        Err(complaint) => {
            section.complain(key, complaint);
            None
        }
    }
}

fn callers(
    root: &Section<'_>,
    drafts: &[Draft<'_>],
    default: Option<usize>,
    plans: &[Arc<Plan>],
    context: &mut Context<'_>,
) -> Vec<Caller> {
    let mut callers: Vec<Caller> = Vec::new();
    for section in root.items("clients") {
        let name = section.required("name", "what logs and metrics call this client", |value| {
            let name = text(value)?;
            fits_name(name).then(|| name.to_owned()).ok_or_else(bad_name)
        });
        let source = section.required("token", "write token = { env = \"WEB_TOKEN\" }", Source::parse);
        let source = trusted(source, &section, "token", context);
        let token = resolve(source.as_ref(), &section, "token", context).map(|found| found.secret);
        let account =
            if section.has("account") { section.read("account", |value| find_account(value, drafts)) } else { default };
        let weight = section.count("weight", 1, 1..=1000);
        let caller = Caller {
            name: name.unwrap_or_default(),
            token,
            account,
            plan: plan(&section, plans),
            weight: u32::try_from(weight).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
        };
        check_twins(&caller, &callers, &section);
        callers.push(caller);
    }
    callers
}

/// Two clients with one name or one token could not be told apart.
fn check_twins(caller: &Caller, earlier: &[Caller], section: &Section<'_>) {
    if earlier.iter().any(|other| !caller.name.is_empty() && other.name == caller.name) {
        section.complain("name", Complaint::new(format!("= \"{}\" is another client's name already", caller.name)));
    }
    if let Some(twin) = earlier.iter().find(|other| caller.token.is_some() && other.token == caller.token) {
        section.complain("token", Complaint::new(format!("is the same as that of client {}", quoted(&twin.name))));
    }
}

/// Names of accounts, plans and clients stand in metrics, logs and file names.
pub(super) fn check_name(name: &str, section: &Section<'_>) {
    if !fits_name(name) {
        section.complain_here(bad_name());
    }
}

fn fits_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn bad_name() -> Complaint {
    Complaint::new("is not a fit name: use 1 to 64 letters, digits, - _ and .")
}

/// A name for the middle of a message that has its own quotes.
fn unticked(name: &str) -> String {
    quoted(name).trim_matches('`').to_owned()
}
