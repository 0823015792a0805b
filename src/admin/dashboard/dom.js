// Elements and the words of numbers. Text from elsewhere goes through textContent alone.

const byId = id => document.getElementById(id);

function element(tag, classes = '', ...children) {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    made.append(...children);
    return made;
}

function drawn(tag, attributes = {}) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
}

// Writes only what changed: a live region speaks, and a selection ends, with each write.
function say(node, text) {
    if (node.textContent !== String(text)) node.textContent = text;
}

function mark(node, name, value) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// Makes the children of `parent` those of `items`, in their order. Who stays keeps its element, and with it focus and selection.
function sync(parent, items, keyOf, make, update) {
    const old = new Map([...parent.children].map(child => [child.dataset.key, child]));
    let place = parent.firstElementChild;
    for (const item of items) {
        const key = String(keyOf(item));
        const child = old.get(key) ?? make(item);
        old.delete(key);
        child.dataset.key = key;
        update(child, item);
        if (child === place) place = place.nextElementSibling;
        else parent.insertBefore(child, place);
    }
    for (const child of old.values()) child.remove();
}

const count = number => number.toLocaleString('en');

const many = (number, word) => `${count(number)} ${word}${number === 1 ? '' : 's'}`;

const two = number => String(number).padStart(2, '0');

function span(seconds) {
    if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
    if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 100) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
    return `${many(Math.floor(whole / 86400), 'day')} ${Math.floor(whole / 3600) % 24} h`;
}

function clock(millis) {
    const at = new Date(millis);
    return [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(':');
}
