// Before anything is painted: the theme that was chosen the last time.
'use strict';
try {
    const theme = localStorage.getItem('theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
    // No storage: the system's theme it is.
}
