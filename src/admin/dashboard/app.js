// Listens to the proxy and shows what it tells.

// After the proxy refused to be listened to.
const PAUSE_MS = 5000;

let latest = null;

// Where apps find the data port, seen from this browser.
function base(address) {
    const everywhere = /^(0\.0\.0\.0|\[::\]):/;
    return 'http://' + (everywhere.test(address) ? address.replace(everywhere, location.hostname + ':') : address);
}

function circuit(upstream) {
    if (upstream.circuit === 'closed') return null;
    return `Upstream unreachable: ${many(upstream.waiting, 'call')} waiting for a connection`;
}

function state({status}) {
    const away = circuit(status.upstream);
    const shown = byId('state');
    shown.className = !status.ready || away ? 'warn' : 'good';
    say(shown, !status.ready ? 'Draining: no new work is taken' : away ?? 'Live');
    say(byId('version'), status.version);
    say(byId('facts'), `up ${span(status.uptime_secs)} · ${many(status.in_flight, 'request')} in flight · ${many(status.connections, 'connection')}`);
    for (const place of document.querySelectorAll('.base')) say(place, status.listen.map(base)[0] ?? '');
    const live = status.accounts.reduce((sum, account) => sum + (account.same_key_as ? 0 : account.jobs.live), 0);
    const waiting = status.accounts.reduce((sum, account) => sum + (account.same_key_as ? 0 : account.waiting), 0);
    document.title = live + waiting > 0 ? `${live} live, ${waiting} waiting · Sluicegate` : 'Sluicegate';
}

function showAll(snapshot) {
    latest = snapshot;
    document.body.classList.remove('lost');
    for (const part of [state, accounts, jobs, clients, causes, recent]) part(snapshot);
    // What a test waits for.
    document.body.dataset.shown = snapshot.at;
}

function lost(why) {
    document.body.classList.add('lost');
    byId('state').className = 'bad';
    say(byId('state'), `${why}${latest ? `, these numbers are of ${clock(latest.at)}` : ''}; trying again`);
}

function listen() {
    const source = new EventSource('api/v1/events');
    source.addEventListener('snapshot', event => showAll(JSON.parse(event.data)));
    source.addEventListener('history', event => history(JSON.parse(event.data)));
    source.addEventListener('error', () => {
        if (source.readyState === EventSource.CLOSED) {
            // An answer that was no stream: the browser does not ask again by itself.
            lost('The proxy does not let this page listen');
            setTimeout(listen, PAUSE_MS);
        } else {
            lost('Connection lost');
        }
    });
}

const THEMES = ['auto', 'light', 'dark'];

function theme() {
    const root = document.documentElement;
    const button = byId('theme');
    const name = () => root.dataset.theme ?? 'auto';
    say(button, `Theme: ${name()}`);
    button.addEventListener('click', () => {
        const next = THEMES[(THEMES.indexOf(name()) + 1) % THEMES.length];
        if (next === 'auto') delete root.dataset.theme;
        else root.dataset.theme = next;
        try {
            if (next === 'auto') localStorage.removeItem('theme');
            else localStorage.setItem('theme', next);
        } catch {
            // No storage: until the page is left.
        }
        say(button, `Theme: ${name()}`);
    });
}

theme();
listen();
