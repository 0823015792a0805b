// Live jobs, clients, causes and recent requests.

function row(columns) {
    const cells = columns.map(classes => element('td', classes));
    return Object.assign(element('tr', '', ...cells), {parts: cells});
}

function table(id, items, keyOf, make, update) {
    const shown = byId(id);
    sync(shown.tBodies[0], items, keyOf, make, update);
    shown.hidden = items.length === 0;
    const empty = byId(`${id}-empty`);
    if (empty) empty.hidden = items.length > 0;
}

// From its start to now, and on to the next look.
function track() {
    const run = element('span', 'run');
    const look = element('span', 'look');
    return Object.assign(element('div', 'track', run, look), {run, look});
}

function job() {
    const made = row(['job', '', 'wide time', 'number', 'number', 'number wide']);
    const [name, below] = [element('span', 'id'), element('span', 'below')];
    const tracks = [track(), track()];
    tracks[0].classList.add('narrow');
    made.parts[0].append(name, below, tracks[0]);
    made.parts[2].append(tracks[1]);
    return Object.assign(made, {name, below, tracks});
}

function jobs({jobs, status}) {
    const {live, shown} = jobs;
    const oldest = shown.reduce((most, each) => Math.max(most, each.age_secs), 1);
    // The time to come takes at least a tenth of the track and at most a third of it.
    const ahead = Math.min(Math.max(shown.reduce((most, each) => Math.max(most, each.next_look_in_secs), 0), oldest / 9), oldest / 2);
    const percent = seconds => `${(Math.max(seconds, 0) / (oldest + ahead) * 100).toFixed(2)}%`;
    const several = status.accounts.length > 1;
    table('jobs', shown, each => each.id, job, (made, each) => {
        say(made.name, each.id);
        mark(made.name, 'title', each.id);
        say(made.below, [each.model, each.client, several ? each.account : ''].filter(Boolean).join(' · '));
        say(made.parts[1], each.status);
        for (const track of made.tracks) {
            track.run.style.left = percent(oldest - each.age_secs);
            track.run.style.width = percent(each.age_secs);
            track.look.style.left = percent(oldest + Math.min(each.next_look_in_secs, ahead));
            track.look.classList.toggle('beyond', each.next_look_in_secs > ahead);
        }
        say(made.parts[3], span(each.age_secs));
        say(made.parts[4], each.next_look_in_secs > 0 ? span(each.next_look_in_secs) : 'now');
        say(made.parts[5], count(each.looks));
    });
    byId('jobs').style.setProperty('--now', percent(oldest));
    say(byId('axis-from'), `${span(oldest)} ago`);
    const ended = Object.entries(status.jobs_ended).map(([end, number]) => `${count(number)} ${end}`);
    const notes = [live > shown.length ? `${count(live)}, the oldest ${count(shown.length)} shown` : live > 0 ? count(live) : ''];
    if (status.jobs_uncertain > 0) notes.push(`${many(status.jobs_uncertain, 'slot')} held by creates of unknown outcome`);
    if (ended.length > 0) notes.push(`since the start ${ended.join(', ')}`);
    say(byId('jobs-note'), notes.filter(Boolean).join('; '));
}

function clients({status}) {
    const several = [...status.clients].sort((a, b) => b.waiting - a.waiting || b.jobs_live - a.jobs_live);
    table('clients', several, each => each.name, () => row(['', '', 'number', 'number']), (made, each) => {
        [each.name, each.account, count(each.waiting), count(each.jobs_live)].forEach((text, place) => say(made.parts[place], text));
    });
}

const CAUSES = {
    window: 'too many requests', jobs: 'too many jobs', unsent: 'nothing was sent', silent: 'sent, not answered',
};

function cause() {
    const made = row(['', '', 'wide', 'number']);
    const [cause, below] = [element('span'), element('span', 'below narrow')];
    made.parts[1].append(cause, below);
    return Object.assign(made, {cause, below});
}

function causes({status}) {
    const rows = [];
    for (const {name, counts} of status.accounts) {
        rows.push(['429 of the upstream', 'window', name, counts.refused_window], ['429 of the upstream', 'jobs', name, counts.refused_jobs]);
        for (const [cause, number] of Object.entries(counts.retries)) rows.push(['retry after', cause, name, number]);
    }
    for (const [code, number] of Object.entries(status.rejections)) rows.push(['refused here', code, '', number]);
    const shown = rows.filter(each => each[3] > 0);
    table('causes', shown, each => each.slice(0, 3).join('\n'), cause, (made, [what, cause, account, number]) => {
        say(made.parts[0], what);
        say(made.cause, CAUSES[cause] ?? cause);
        say(made.below, account);
        say(made.parts[2], account);
        say(made.parts[3], count(number));
    });
}

const BY = {upstream: 'upstream', memory: 'memory', proxy: 'proxy', caller: 'left before it'};

function request() {
    const made = row(['time', 'request', 'wide', '', '', 'number wide', 'number wide', 'number wide', 'number']);
    const [method, path] = [element('b'), element('span', 'path')];
    made.parts[1].append(method, ' ', path);
    return Object.assign(made, {method, path});
}

function recent({recent}) {
    const millis = each => (each > 0 ? span(each / 1000) : '–');
    table('recent', recent, each => each.number, request, (made, each) => {
        const [at, , client, answer, by, waited, upstream, attempts, total] = made.parts;
        say(at, clock(each.at));
        say(made.method, each.method);
        say(made.path, each.path);
        mark(made.path, 'title', each.path);
        say(client, each.client ?? '–');
        say(answer, [each.by === 'caller' ? '–' : each.status, each.code, each.charge === 'unknown' ? 'charge unknown' : ''].filter(Boolean).join(' '));
        answer.className = each.status >= 500 || each.charge === 'unknown' ? 'bad' : each.status >= 400 ? 'warn' : '';
        say(by, BY[each.by] + (each.complete || each.by === 'caller' ? '' : ', cut short'));
        say(waited, millis(each.queue_ms));
        say(upstream, millis(each.upstream_ms));
        say(attempts, each.attempts);
        say(total, span(each.total_ms / 1000));
    });
}
