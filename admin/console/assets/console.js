// Comforts for browsers with script. Every page works without this file.
"use strict";

// Times: the title of each has UTC; the zone of the viewer is added.
for (const t of document.querySelectorAll("time")) {
	t.title = new Date(t.dateTime).toLocaleString() + "\n" + t.title;
}

// Controls that need this script.
for (const e of document.querySelectorAll("[data-script], [data-copy]")) e.hidden = false;

// A tick for the visible rows of a column, data-all="column", or for a row.
for (const all of document.querySelectorAll("[data-all]")) {
	const cell = all.closest("th, td");
	const column = [...cell.closest("table").tBodies[0].rows].map((row) => row.cells[cell.cellIndex]);
	const within = all.dataset.all === "column" ? column : [cell.parentElement];
	const ticks = within.flatMap((e) => [...e.querySelectorAll("[type=checkbox]:not([data-all])")]);
	const show = () => {
		const on = ticks.filter((t) => t.checked).length;
		all.checked = on > 0 && on === ticks.length;
		all.indeterminate = on > 0 && on < ticks.length;
	};
	all.addEventListener("change", () => {
		for (const t of ticks) if (!t.closest("[hidden]")) t.checked = all.checked;
	});
	all.form.addEventListener("change", show); // also after the lines above
	show();
}

// A search that hides the rows without its text.
for (const search of document.querySelectorAll("[data-filter]")) {
	search.addEventListener("input", () => {
		const text = search.value.toLowerCase();
		for (const row of document.querySelectorAll(search.dataset.filter)) {
			row.hidden = !(row.dataset.text ?? row.textContent).toLowerCase().includes(text);
		}
	});
	search.addEventListener("keydown", (e) => { if (e.key === "Enter") e.preventDefault(); });
}

// The end of a token is enough to find it: the whole one would get into addresses, logs and the history.
document.addEventListener("input", ({ target: t }) => {
	const text = t.matches("form[method=get] input, [data-suggest]") ? t.value.trim() : "";
	if (/^csu_\w{40,}$/.test(text)) t.value = text.slice(-4);
}, true);

// Copy buttons.
for (const b of document.querySelectorAll("[data-copy]")) {
	b.addEventListener("click", async () => {
		const text = document.getElementById(b.dataset.copy);
		if (!navigator.clipboard) { // over plain HTTP: the keys of the browser copy it
			getSelection().selectAllChildren(text);
			return;
		}
		await navigator.clipboard.writeText(text.textContent);
		b.textContent = "Copied";
	});
}

// "/" moves to the search.
document.addEventListener("keydown", (e) => {
	const search = document.querySelector("[data-focus='/']");
	if (e.key === "/" && search && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
		e.preventDefault();
		search.focus();
	}
});

// A link to a page with actions, [data-menu], opens a menu of them here. It names the one to leave out.
for (const link of document.querySelectorAll("[data-menu]")) {
	const menu = document.getElementById("menu");
	link.addEventListener("click", (e) => {
		e.preventDefault();
		for (const a of menu.children) {
			a.href = link.href + "/" + a.dataset.at;
			a.hidden = a.dataset.at === link.dataset.menu;
		}
		menu.showPopover({ source: link });
		menu.querySelector("a").focus();
	});
}

// The effect and the faults of a form with [data-check], shown while a person fills it: the same
// answer as that of the button "Show the effect".
for (const form of document.querySelectorAll("form[data-check]")) {
	let timer, asked = 0;
	form.addEventListener("input", () => {
		clearTimeout(timer);
		timer = setTimeout(async () => {
			const mine = ++asked;
			const body = new URLSearchParams(new FormData(form));
			body.set("do", "preview");
			const answer = await fetch(location.href, { method: "POST", body }).catch(() => null);
			const page = new DOMParser().parseFromString(answer ? await answer.text() : "", "text/html");
			if (mine !== asked) return; // a newer answer is on its way
			for (const part of document.querySelectorAll("#effect, .error[id]")) {
				part.replaceChildren(...page.getElementById(part.id)?.childNodes ?? []);
			}
			if (!page.getElementById("effect")) {
				document.getElementById("effect").textContent = "The input could not be checked: " +
					(page.querySelector("h1")?.textContent || "no answer");
			}
		}, 400);
	});
}

// Names of service users, offered while a person types in a field with [data-suggest].
for (const field of document.querySelectorAll("[data-suggest]")) {
	const list = document.createElement("datalist");
	list.id = "suggest-" + field.name;
	field.after(list);
	field.setAttribute("list", list.id);
	field.addEventListener("input", async () => {
		const text = field.value;
		const answer = await fetch("/service_users?limit=20&q=" + encodeURIComponent(text));
		if (!answer.ok || text !== field.value) return; // a later answer has come, or will
		const users = (await answer.json()).service_users;
		list.replaceChildren(...users.map((u) => new Option(u.display_name || u.owner, u.name)));
	});
}
