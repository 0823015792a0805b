// A card for each account: the window, the job slots, the day's credits, what was counted.

// More slots than this are a bar.
const PIPS = 40;

function gauge(label) {
    const fill = element('span', 'fill');
    const bar = element('div', 'bar', fill);
    bar.setAttribute('role', 'meter');
    bar.setAttribute('aria-label', label);
    bar.setAttribute('aria-valuemin', 0);
    const used = element('b', 'used');
    const limit = element('span', 'limit');
    const note = element('p', 'under');
    const made = element('div', 'gauge', element('p', 'over', used, limit), bar, note);
    return Object.assign(made, {fill, bar, used, limit, note});
}

// `limit` may be missing: then there is nothing to be full.
function show(gauge, used, limit, unit, note) {
    say(gauge.used, count(used));
    say(gauge.limit, limit === null ? ` ${unit}, no limit` : ` / ${count(limit)} ${unit}`);
    gauge.bar.hidden = limit === null;
    if (limit !== null) {
        const share = limit > 0 ? Math.min(used / limit, 1) : 1;
        gauge.fill.style.width = `${share * 100}%`;
        gauge.classList.toggle('full', share >= 1);
        mark(gauge.bar, 'aria-valuenow', Math.min(used, limit));
        mark(gauge.bar, 'aria-valuemax', limit);
        mark(gauge.bar, 'aria-valuetext', `${count(used)} of ${count(limit)} ${unit}`);
    }
    say(gauge.note, note);
    gauge.note.hidden = !note;
}

function pips(bar, live, limit) {
    const wanted = limit !== null && limit <= PIPS ? limit : 0;
    bar.classList.toggle('pips', wanted > 0);
    while (bar.querySelectorAll('.pip').length > wanted) bar.querySelector('.pip').remove();
    while (bar.querySelectorAll('.pip').length < wanted) bar.append(element('span', 'pip'));
    bar.querySelectorAll('.pip').forEach((pip, place) => pip.classList.toggle('taken', place < live));
}

const COUNTS = ['attempts', 'retries', '429 window', '429 jobs', 'waiting', 'drift'];

function card(account) {
    const name = element('h3');
    name.textContent = account.name;
    const plan = element('span', 'note');
    const badges = element('span', 'badges');
    const requests = gauge(`Window of ${account.name}`);
    const jobs = gauge(`Job slots of ${account.name}`);
    const credits = gauge(`Credits of ${account.name} today`);
    const counts = element('dl', 'counts');
    const values = COUNTS.map(title => {
        const value = element('dd');
        counts.append(element('div', '', element('dt', '', title), value));
        return value;
    });
    const made = element('article', 'panel card', element('div', 'head', name, plan, badges), requests, jobs, credits, counts);
    return Object.assign(made, {plan, badges, requests, jobs, credits, values});
}

function notes(account) {
    const notes = [];
    if (account.paced) notes.push(['paced', 'warn', 'Attempts are evenly spaced, by setting or since a 429']);
    if (account.drift > 0) notes.push([`${many(account.drift, 'attempt')} of others`, 'bad', 'Somebody else spends the same key']);
    return notes;
}

function windowNote({limit, used, remaining, next_in_secs: next}) {
    if (used === 0 && remaining === limit) return 'all free';
    return `${count(remaining)} free now${next > 0 ? `, next place in ${span(next)}` : ''}`;
}

function update(card, {account, budget, renews}) {
    say(card.plan, account.same_key_as ? `plan ${account.plan}, same key as ${account.same_key_as}` : `plan ${account.plan}`);
    sync(card.badges, notes(account), note => note[0], () => element('span'), (badge, [text, kind, title]) => {
        badge.className = `badge ${kind}`;
        badge.title = title;
        say(badge, text);
    });
    const {requests, jobs, counts} = account;
    if (requests) show(card.requests, requests.used, requests.limit, `attempts in any ${span(requests.window_secs)}`, windowNote(requests));
    else show(card.requests, account.attempts, null, 'attempts', '');
    show(card.jobs, jobs.live, jobs.limit, 'jobs', '');
    pips(card.jobs.bar, jobs.live, jobs.limit);
    card.credits.hidden = !budget || (budget.limit === null && budget.used === 0);
    if (budget) show(card.credits, budget.used, budget.limit, 'credits today', budget.limit === null ? '' : renews);
    const retries = Object.values(counts.retries).reduce((sum, each) => sum + each, 0);
    const values = [account.attempts, retries, counts.refused_window, counts.refused_jobs, account.waiting, account.drift];
    values.forEach((value, place) => {
        say(card.values[place], count(value));
        card.values[place].classList.toggle('none', value === 0);
    });
}

function accounts({status}) {
    const {credits} = status;
    const renews = `renewed in ${span(credits.resets_in_secs)} (UTC${credits.utc_offset})`;
    const budgets = new Map(credits.accounts.map(budget => [budget.name, budget]));
    const shown = status.accounts.map(account => ({account, budget: budgets.get(account.name), renews}));
    sync(byId('accounts'), shown, ({account}) => account.name, ({account}) => card(account), update);
}
