// The last hour: four curves of one point each ten seconds, the newest at the right.

const HEIGHT = 56;
// A young proxy's curves are drawn as wide as those of ten minutes.
const LEAST = 60;
const CURVES = [
    ['attempts', 'Attempts', 'in 10 s'],
    ['waiting', 'Waiting', 'at most'],
    ['jobs_live', 'Live jobs', 'at most'],
    ['refused', '429s', 'in 10 s'],
];

let shown = null;
// How many points are drawn, the missing ones of a young proxy included.
let width = LEAST;
const charts = new Map();

function chart(name, title) {
    const value = element('b');
    const note = element('span', 'note');
    const picture = drawn('svg', {role: 'img', tabindex: 0, preserveAspectRatio: 'none', class: 'curve'});
    const area = drawn('path', {class: 'area'});
    const line = drawn('path', {class: 'line', 'vector-effect': 'non-scaling-stroke'});
    const cursor = drawn('path', {class: 'cursor', 'vector-effect': 'non-scaling-stroke'});
    picture.append(area, line, cursor);
    const figure = element('figure', 'panel chart', element('figcaption', '', element('span', '', title), value, note), picture);
    figure.dataset.name = name;
    const made = {figure, value, note, picture, area, line, cursor, at: null};
    picture.addEventListener('pointermove', event => {
        const box = picture.getBoundingClientRect();
        point(made, Math.floor((event.clientX - box.left) / box.width * width));
    });
    picture.addEventListener('pointerleave', () => point(made, null));
    picture.addEventListener('blur', () => point(made, null));
    picture.addEventListener('keydown', event => {
        const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30}[event.key];
        if (event.key === 'Escape') point(made, null);
        if (!step || !shown) return;
        event.preventDefault();
        point(made, (made.at ?? width) + step);
    });
    return made;
}

// Puts the cursor of a chart on a point; none: back to the newest.
function point(chart, place) {
    if (!shown) return;
    const first = width - shown[chart.figure.dataset.name].length;
    chart.at = place === null || first === width ? null : Math.min(Math.max(place, first), width - 1);
    draw(chart);
}

function path(values, offset, highest) {
    const y = value => (HEIGHT - 2 - value / highest * (HEIGHT - 6)).toFixed(1);
    const line = values.map((value, place) => `${place ? 'L' : 'M'}${offset + place} ${y(value)}`).join('');
    // One point alone is a dot.
    return values.length === 1 ? `${line}h.01` : line;
}

function draw(chart) {
    const [name, title, unit] = CURVES.find(curve => curve[0] === chart.figure.dataset.name);
    const values = shown[name];
    const highest = values.reduce((most, value) => Math.max(most, value), 0);
    const offset = width - values.length;
    mark(chart.picture, 'viewBox', `0 0 ${width - 1} ${HEIGHT}`);
    const line = path(values, offset, Math.max(highest, 1));
    mark(chart.line, 'd', line);
    mark(chart.area, 'd', line && `${line}L${width - 1} ${HEIGHT}L${offset} ${HEIGHT}Z`);
    mark(chart.cursor, 'd', chart.at === null ? '' : `M${chart.at} 0V${HEIGHT}`);
    const newest = values.at(-1) ?? 0;
    mark(chart.picture, 'aria-label', `${title} ${unit}, the last hour: now ${count(newest)}, highest ${count(highest)}. Arrow keys show single points.`);
    chart.figure.classList.toggle('alarm', name === 'refused' && highest > 0);
    if (chart.at === null) {
        say(chart.value, count(newest));
        say(chart.note, `${unit}, highest ${count(highest)}`);
    } else {
        say(chart.value, count(values[chart.at - offset]));
        say(chart.note, `${span((width - 1 - chart.at) * shown.every_secs)} ago`);
    }
}

function history(history) {
    // A cursor stays on its point, which moves to the left.
    const wider = Math.max(history.attempts.length, LEAST) - width;
    const moved = shown === null ? 0 : wider - 1;
    [shown, width] = [history, width + wider];
    const place = byId('charts');
    for (const [name, title] of CURVES) {
        if (charts.has(name)) continue;
        charts.set(name, chart(name, title));
        place.append(charts.get(name).figure);
    }
    for (const each of charts.values()) point(each, each.at === null ? null : each.at + moved);
    const points = history.attempts.length;
    const young = points === 0 ? `the first point comes after ${span(history.every_secs)}` : `${span(points * history.every_secs)} so far`;
    say(byId('charts-note'), points < history.points ? young : '');
}
