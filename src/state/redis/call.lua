-- One call of one replica about one account: what it has to report, then what it asks for. One round trip, one atomic step.
--
-- KEYS: account (hash), places (sorted set: place -> when it comes free), members (hash), slots (hash), turns (hash), purse (hash: what each
-- replica has taken of the day's credits), weights (hash: place -> attempts that it stands for, where these are more than one).
-- ARGV[1]: the request; see `wire.rs`. Times are the server's, in whole microseconds; what is told and asked are durations.
-- Every rule that bounds something is here; the replicas only wait.
local q = cjson.decode(ARGV[1])
local account, places, members, slots, turns, purse = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local weights = KEYS[7]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- cjson and Lua write 14 digits, a time has 16.
local function text(number) return string.format('%.0f', number) end

local a = {}
do
    local flat = redis.call('HGETALL', account)
    for i = 1, #flat, 2 do a[flat[i]] = flat[i + 1] end
end
local function stored(name) return tonumber(a[name] or '0') end
local set = {}
local function keep(name, value)
    a[name] = value
    set[name] = value
end

-- A change of what is kept that an older script would misread raises this, here and in `lives.lua`: that one then changes nothing any more, and
-- says so. What is only added is passed over by older ones.
local VERSION = 1
if stored('version') > VERSION then return cjson.encode({ now = text(now), refused = 'newer' }) end

-- How many more attempts count than there are places.
local extra = math.max(stored('extra'), 0)
-- A script that knows no weights has forgotten the account, or none was ever kept.
if not a.extra and redis.call('HLEN', weights) > 0 then redis.call('DEL', weights) end
local function weigh(place, weight)
    local old = extra > 0 and tonumber(redis.call('HGET', weights, place) or '1') or 1
    if weight == old then return end
    if weight > 1 then
        redis.call('HSET', weights, place, text(weight))
    else
        redis.call('HDEL', weights, place)
    end
    extra = extra + weight - old
end
local function put_place(place, at, weight)
    weigh(place, weight)
    redis.call('ZADD', places, text(at), place)
end
local function drop_place(place)
    weigh(place, 1)
    redis.call('ZREM', places, place)
end
-- What has left the window goes.
local function expire()
    local first = extra > 0 and redis.call('ZRANGE', places, 0, 63, 'WITHSCORES') or {}
    while #first > 0 and tonumber(first[2]) < now do
        for i = 1, #first, 2 do
            if tonumber(first[i + 1]) < now then drop_place(first[i]) end
        end
        first = redis.call('ZRANGE', places, 0, 63, 'WITHSCORES')
    end
    if extra == 0 then redis.call('ZREMRANGEBYSCORE', places, '-inf', '(' .. text(now)) end
end

-- Time that no step of the clock adds to: it goes on by a lease at most from call to call. Where it is late, things are kept for longer.
local age = stored('age') + math.max(math.min(now - stored('last'), q.lease), 0)

-- Another process answers than before, after a failover or a restart: what was written last may be lost. A roll is called, see below.
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '-'
local age_before = stored('age')
if a.server ~= server then
    if a.server then
        -- Later than any call that the old one kept.
        age = age + 1
        keep('roll', text(age))
        keep('roll_from', text(age_before))
    end
    keep('server', server)
end

-- Members: life, last call, its time, time of the last call whose answer is known to have arrived; both times by age too.
local all, count = {}, 0
do
    local flat = redis.call('HGETALL', members)
    for i = 1, #flat, 2 do
        local words = {}
        for word in string.gmatch(flat[i + 1], '%S+') do words[#words + 1] = word end
        all[flat[i]] = {
            life = words[1], seq = tonumber(words[2]), at = tonumber(words[3]), seen = tonumber(words[4]),
            at_age = tonumber(words[5]), seen_age = tonumber(words[6]),
        }
        count = count + 1
    end
end
local function save(id, m)
    if not all[id] then count = count + 1 end
    all[id] = m
    local times = { m.seq, m.at, m.seen, m.at_age, m.seen_age }
    for i, time in ipairs(times) do times[i] = text(time) end
    redis.call('HSET', members, id, m.life .. ' ' .. table.concat(times, ' '))
end

-- A member of whom no more is known than that it may hold something (`?`) or sends its share (`-`).
local function stranger(life)
    return { life = life, seq = 0, at = now, seen = now, at_age = age, seen_age = age }
end

-- Credits, in millionths: by replica, the day and what it has taken on it. Each tells the whole of its own with every call, so that what is told
-- late, twice or never changes nothing. `mark`: empty where it was told by its own replica; else by others, `~` when it was final, `?` when
-- it may have grown since.
local rows, day, purse_whole = {}, nil, false
if q.purse then
    local flat, found, told = redis.call('HGETALL', purse), 0, nil
    for i = 1, #flat, 2 do
        if flat[i] == 'day' then
            day = tonumber(flat[i + 1])
        elseif flat[i] == 'rows' then
            told = tonumber(flat[i + 1])
        else
            local of, amount, mark = string.match(flat[i + 1], '^(%-?%d+) (%d+)(.?)$')
            rows[flat[i]] = { day = tonumber(of), amount = tonumber(amount), mark = mark, was = flat[i + 1] }
            found = found + 1
        end
    end
    purse_whole = day ~= nil and told == found
    if not purse_whole then
        redis.call('DEL', purse)
        rows, day = {}, nil
    end
end

-- It may have taken more than its row says, if it has one.
local function unsure_of(id)
    if not q.purse then return end
    local row = rows[id] or { day = math.max(q.purse.day, day or q.purse.day), amount = 0 }
    row.mark = '?'
    rows[id] = row
end

-- Nothing can be said of what was sent: the window counts as full, the bucket as empty.
local function reset(why)
    redis.call('DEL', places, weights, turns)
    extra = 0
    keep('full', text(now + q.hold))
    keep('why', why)
    keep('tat', text(now + q.hold))
    for id, m in pairs(all) do
        m.at, m.seen = now, now
        save(id, m)
    end
end

local r = { now = text(now) }

-- A part that is missing or rolled back, an eviction or a DEL by hand: as good as nothing at all.
local function sizes()
    local of = redis.call('ZCARD', places) .. ' ' .. redis.call('HLEN', slots) .. ' ' .. count
    return extra > 0 and of .. ' ' .. redis.call('HLEN', weights) or of
end
if a.last == nil or a.sizes ~= sizes() or (q.purse and a.purse and not purse_whole) then
    redis.call('DEL', account, places, weights, members, slots, turns)
    all, count, a, set, age = {}, 0, {}, {}, 0
    keep('server', server)
    reset('new')
elseif now < stored('last') - q.jitter then
    reset('clock')
end
if q.stepped then reset('clock') end

-- The roll: nothing is granted for a lease, in which everyone who lives calls, and joins anew where its last call is lost. Whoever was
-- about shortly before and does not call has died with the old server, and nobody knows what it was granted last.
local rolling = stored('roll') > 0 and age - stored('roll') < q.lease
if stored('roll') > 0 and not rolling then
    local absent = {}
    for id, m in pairs(all) do
        if id ~= q.id and m.at_age < stored('roll') and stored('roll_from') - m.at_age <= q.lease then absent[#absent + 1] = id end
    end
    if #absent > 0 then reset('failover') end
    for _, id in ipairs(absent) do
        save(id, stranger('?'))
        unsure_of(id)
    end
    keep('roll', '0')
end

for id, m in pairs(all) do
    if age - m.seen_age > q.forget then
        redis.call('HDEL', members, id)
        all[id] = nil
        count = count - 1
    end
end

for name, left in pairs(a) do
    if string.sub(name, 1, 5) == 'left ' and age - left > q.forget then redis.call('HDEL', account, name) end
end

local function missing(m) return now - m.seen > q.lease end

local me = all[q.id]

local function keep_purse()
    local found = 0
    for id, row in pairs(rows) do
        if row.day < day then
            if row.was then redis.call('HDEL', purse, id) end
        else
            found = found + 1
            local to = text(row.day) .. ' ' .. text(row.amount) .. row.mark
            if to ~= row.was then redis.call('HSET', purse, id, to) end
        end
    end
    redis.call('HSET', purse, 'rows', found, 'day', text(day))
    keep('purse', '1')
end

local function finish()
    expire()
    keep('version', VERSION)
    keep('last', text(now))
    keep('age', text(age))
    keep('sizes', sizes())
    if extra > 0 or a.extra then keep('extra', text(extra)) end
    local fields = {}
    for name, value in pairs(set) do
        fields[#fields + 1] = name
        fields[#fields + 1] = value
    end
    redis.call('HSET', account, unpack(fields))
    return cjson.encode(r)
end

local function remove_places(life)
    local start = life .. ':'
    for _, place in ipairs(redis.call('ZRANGE', places, 0, -1)) do
        if string.sub(place, 1, #start) == start then drop_place(place) end
    end
end

-- Given up by its replica, and come through all the same: what it says has been overtaken.
if me and me.life == q.life and q.seq <= me.seq then
    r.refused = 'late'
    return finish()
end

if q.op == 'leave' then
    if me and me.life == q.life then
        redis.call('HDEL', members, q.id)
        all[q.id] = nil
        count = count - 1
        -- For those who come back and have heard of it before.
        keep('left ' .. q.id, text(age))
    end
    return finish()
end

local function slot_of_job(job)
    if job == '' then return nil end
    local flat = redis.call('HGETALL', slots)
    for i = 1, #flat, 2 do
        local entry = cjson.decode(flat[i + 1])
        if entry.job == job then return flat[i], entry end
    end
end

local lost = {}
-- A slot that its replica holds: known already, another's, or new. A job has one, whoever sees it.
local function put_slot(slot, told)
    local old = redis.call('HGET', slots, slot)
    if old then
        local entry = cjson.decode(old)
        if entry.owner ~= q.id or entry.fence ~= told.fence then
            lost[#lost + 1] = slot
            return
        end
        told.paid = told.paid or entry.paid
    else
        local other = slot_of_job(told.job)
        if other and other ~= slot then
            lost[#lost + 1] = slot
            return
        end
    end
    told.owner = q.id
    redis.call('HSET', slots, slot, cjson.encode(told))
end

local function free_slots_of(freed)
    for _, told in ipairs(freed or {}) do
        local old = redis.call('HGET', slots, told[1])
        if old then
            local entry = cjson.decode(old)
            if entry.owner == q.id and entry.fence == told[2] then
                redis.call('HDEL', slots, told[1])
                -- Paid by a replica that is gone, and to be refunded. One that is there says so itself.
                local row = told[3] == 1 and entry.paid and rows[entry.paid.by]
                if row and entry.paid.by ~= q.id and row.day == entry.paid.day then
                    row.amount = math.max(row.amount - tonumber(entry.paid.amount), 0)
                end
            end
        end
    end
end

local adopted = {}
local function adopt_slot(slot, entry)
    entry.owner, entry.fence = q.id, entry.fence + 1
    redis.call('HSET', slots, slot, cjson.encode(entry))
    entry.slot = slot
    adopted[#adopted + 1] = entry
end

if q.op == 'join' then
    local placeholder = me and #me.life == 1
    if me and me.life ~= q.life and not placeholder and (now - me.at < q.lease or age - me.at_age < q.lease) then
        r.refused = 'taken'
        return finish()
    end
    -- Others were about, and nobody has called for longer than any of them is silent: all have failed, or the clock has moved. Who was
    -- here before judges that by its own clock.
    local fresh = not me or me.life ~= q.life
    local others = count - (me and 1 or 0)
    if fresh and others > 0 and now - stored('last') > q.lease and stored('full') <= now then
        reset('clock')
        me = all[q.id]
    end
    if not me and count >= q.replicas then
        r.refused = 'full'
        return finish()
    end
    remove_places(q.life)
    if me and me.life ~= q.life then remove_places(me.life) end
    for i, place in ipairs(q.uploads or {}) do
        for n = 1, place[2] do
            redis.call('ZADD', places, text(now + place[1]), q.life .. ':up' .. i .. '.' .. n)
        end
    end
    -- Slots of this replica that it does not tell of: an earlier process' under another name, or of an answer that never arrived.
    local own, own_jobs, paid = {}, {}, {}
    for _, told in ipairs(q.slots or {}) do
        own[told.slot] = true
        if told.job ~= '' then own_jobs[told.job] = true end
    end
    free_slots_of(q.freed)
    local flat = redis.call('HGETALL', slots)
    for i = 1, #flat, 2 do
        local entry = cjson.decode(flat[i + 1])
        if entry.owner == q.id and not own[flat[i]] then
            if own_jobs[entry.job] then
                redis.call('HDEL', slots, flat[i])
                paid[entry.job] = entry.paid
            else
                adopt_slot(flat[i], entry)
            end
        end
    end
    -- A cut-off replica's share stays reserved until it is known that this answer has arrived.
    local known = placeholder or not fresh
    local seen, seen_age = known and me.seen or now, known and me.seen_age or age
    me = { life = q.life, seq = q.seq, at = now, seen = seen, at_age = age, seen_age = seen_age }
    save(q.id, me)
    if a['left ' .. q.id] then redis.call('HDEL', account, 'left ' .. q.id) end
    -- Others that the caller knew before everything was lost: their share is kept for them, and their jobs count until they tell.
    for id, life in pairs(q.others or {}) do
        if not all[id] and age < q.forget and not a['left ' .. id] then
            save(id, stranger(life))
            if not rows[id] then unsure_of(id) end
        end
    end
    for _, told in ipairs(q.slots or {}) do
        local slot = told.slot
        told.slot, told.paid = nil, told.paid or paid[told.job]
        put_slot(slot, told)
    end
    r.joined = true
else
    if not me or me.life ~= q.life then
        r.refused = 'unknown'
        return finish()
    end
    if me.seq < q.ack then
        -- What was written last is lost. While a roll is called nobody has been granted anything since.
        if rolling then
            save(q.id, stranger('?'))
        else
            reset('rollback')
            redis.call('HDEL', members, q.id)
            count = count - 1
        end
        r.refused = 'unknown'
        return finish()
    end
    if me.seq == q.ack then me.seen, me.seen_age = me.at, me.at_age end
    me.seq, me.at, me.at_age = q.seq, now, age
    save(q.id, me)
    for _, told in ipairs(q.ends or {}) do
        if told[2] <= 0 then
            redis.call('ZREM', places, told[1])
        else
            redis.call('ZADD', places, text(now + told[2]), told[1])
        end
    end
    free_slots_of(q.freed)
    for _, told in ipairs(q.slots or {}) do
        local slot = told.slot
        told.slot = nil
        put_slot(slot, told)
    end
end
if #lost > 0 then r.lost = lost end

-- A plan of blocks: each replica tells, as a whole, how many attempts it may still send or has under way, and when those that were answered
-- leave the window, as far as that is new.
local function put_open(number)
    local place = q.life .. ':open'
    if number > 0 then
        put_place(place, now + q.hold, number)
    else
        drop_place(place)
    end
end
if q.open then
    for _, told in ipairs(q.spent or {}) do put_place(q.life .. ':s' .. text(told[1]), now + told[2], told[3]) end
    put_open(q.open)
end

-- The day turns when the server's clock and the replica's calendar both say so, and never back.
local spent = 0
if q.purse then
    local by_clock = math.floor((now / 1000000 + q.purse.offset) / 86400)
    local today = math.max(math.min(by_clock, q.purse.day), q.purse.seen or 0)
    day = day and math.max(day, today) or today
    local mine = rows[q.id]
    rows[q.id] = { day = q.purse.of, amount = tonumber(q.purse.spent), mark = '', was = mine and mine.was }
    for id, told in pairs(q.purse.others or {}) do
        local row, amount = rows[id], tonumber(told[2])
        local more = row and (told[1] > row.day or (told[1] == row.day and amount > row.amount))
        if id ~= q.id and (not row or (row.mark ~= '' and more)) then
            rows[id] = { day = told[1], amount = amount, mark = told[3] and '~' or '?', was = row and row.was }
        end
    end
    r.purse = { day = day, ends = ((day + 1) * 86400 - q.purse.offset) * 1000000 - now }
    for id, row in pairs(rows) do
        if row.day >= day then
            spent = spent + row.amount
            if row.mark == '?' then r.purse.frozen = true end
        end
    end
end
-- Whether the budget lasts for this too.
local function affordable(amount)
    return amount == 0 or not q.purse or (not r.purse.frozen and spent + amount <= tonumber(q.purse.budget))
end
local function spend(amount)
    if amount == 0 or not q.purse then return end
    local row = rows[q.id]
    if row.day < day then row.day, row.amount = day, 0 end
    row.amount, spent = row.amount + amount, spent + amount
end

if q.closed then keep('closed', text(math.max(stored('closed'), now + q.closed))) end
if q.paced and a.paced ~= '1' then
    keep('paced', '1')
    keep('tat', text(math.max(stored('tat'), now + (q.closed or 0) + (q.burst - 1) * q.period)))
end

-- The rate. Those that are cut off may be sending their share.
expire()
local used = redis.call('ZCARD', places) + extra
local away, unsure = 0, false
for id, m in pairs(all) do
    if missing(m) then away = away + 1 end
    if m.life == '?' and age - m.at_age < q.max_age then unsure = true end
end
local limit = q.limit and q.limit - math.floor(q.limit / q.replicas) * away
local paced = q.limit and (q.pace or a.paced == '1')
local tat = math.max(stored('tat'), now)

-- Whose turn it is: replicas that were refused come back at the instant they were told, and before those who come later.
local promised, mine = {}, nil
local turns_at = redis.call('HGETALL', turns)
for i = 1, #turns_at, 2 do
    local id, kind = string.match(turns_at[i], '^(.*) (%a)$')
    -- When, since when, and for how many attempts.
    local at, told, size = string.match(turns_at[i + 1], '^(%d+) (%d+) ?(%d*)$')
    at, told, size = tonumber(at), tonumber(told), tonumber(size) or 1
    local grace = kind == 's' and q.patience * 4 or q.patience
    if math.max(at, told) + grace < now or not all[id] then
        redis.call('HDEL', turns, turns_at[i])
    elseif id ~= q.id then
        promised[#promised + 1] = { kind = kind, at = at, size = size }
    elseif kind == 'r' then
        mine = at
    else
        promised.slot = at
    end
end
local function before(kind, at)
    local others = 0
    for _, p in ipairs(promised) do
        if p.kind == kind and (at == nil or p.at < at) then others = others + p.size end
    end
    return others
end
local function due(kind)
    local others = 0
    for _, p in ipairs(promised) do
        if p.kind == kind and p.at <= now and (mine == nil or p.at < mine) then others = others + p.size end
    end
    return others
end

-- When the place comes free that holds the attempt of this number, from the first to leave on; or an earlier one, if that is far.
local function end_of(number)
    if extra == 0 then return redis.call('ZRANGE', places, number - 1, number - 1, 'WITHSCORES')[2] end
    local first, sum, at = redis.call('ZRANGE', places, 0, 255, 'WITHSCORES'), 0, nil
    for i = 1, #first, 2 do
        sum, at = sum + tonumber(redis.call('HGET', weights, first[i]) or '1'), first[i + 1]
        if sum >= number then break end
    end
    return at
end

-- Until there may be as many places more.
local function wait_for_places(more)
    local number = math.min(math.max(used - limit, 0) + more, used)
    if number < 1 then return q.lease / 4 end
    local at = tonumber(end_of(number)) - now
    -- Not told yet when it was answered: no earlier than a window after it was granted.
    if at > q.window + q.jitter then at = at - q.jitter - q.grant end
    return math.max(at, 0)
end

local function closed()
    if now < stored('full') then return stored('full') - now, a.why end
    if rolling then return q.lease - (age - stored('roll')), 'roll' end
    if now < stored('closed') then return stored('closed') - now, 'closed' end
end

local granted, no_slot, no_place, new_slots = {}, false, false, 0
local free_slots = q.jobs and (q.jobs - redis.call('HLEN', slots))
local waiting_slots = before('s', promised.slot)
local slots_left = free_slots and (free_slots - waiting_slots)
local ahead = due('r')
local wait, why = closed()
for i, ask in ipairs(q.asks or {}) do
    granted[i] = 0
    local wants_slot, price = ask[2] ~= '', tonumber(ask[5] or '0')
    if not wait and not affordable(price) then
        granted[i] = 2
    elseif not wait and not no_place then
        if q.limit and not q.block and used + ahead >= limit then
            no_place = true
        elseif paced and not q.block and tat - now > (q.burst - 1) * q.period then
            no_place = true
        elseif wants_slot and q.jobs and (slots_left <= 0 or unsure) then
            no_slot = true
        else
            granted[i] = 1
            spend(price)
            if q.limit and not q.block then
                put_place(ask[1], now + q.hold, 1)
                used = used + 1
            end
            if paced and not q.block then
                tat = tat + q.period
                keep('tat', text(tat))
            end
            if wants_slot and q.jobs then
                slots_left, free_slots, new_slots = slots_left - 1, free_slots - 1, new_slots + 1
                local entry = { owner = q.id, fence = 1, job = '', model = '', client = ask[3], account = ask[4] }
                if price > 0 and q.purse then entry.paid = { amount = ask[5], day = rows[q.id].day, by = q.id } end
                redis.call('HSET', slots, ask[2], cjson.encode(entry))
            end
        end
    end
end
if #granted > 0 then r.granted = granted end

-- Cells of an even pace that are there.
local function cells() return math.max(math.floor(q.burst - (tat - now) / q.period), 0) end
-- A block of attempts at once, to be spent by its replica in a lease's time or given back.
local block = 0
if q.want and not wait then
    local most = limit - used
    if paced then most = math.min(most, cells()) end
    block = math.max(math.min(q.want, q.block, most - ahead), 0)
    if block > 0 then
        put_open(q.open + block)
        used = used + block
        r.block = block
        if paced then
            tat = tat + block * q.period
            keep('tat', text(tat))
        end
    end
end

-- What comes next.
if wait then
    r.wait, r.why, r.free = math.ceil(wait), why, 0
elseif q.block then
    r.free = math.max(limit - used, 0)
    if paced then r.free = math.min(r.free, cells()) end
    if q.want and block < q.want then
        -- Worth a call, after those who wait already.
        local size = math.min(q.want, q.chunk)
        local more = before('r', block == 0 and mine or nil) + size
        local after = q.window / 1024
        if paced then after = math.max(after, (more - cells()) * q.period) end
        if used + more > limit then after = math.max(after, wait_for_places(more)) end
        r.wait, r.why = math.ceil(after), paced and 'pace' or 'window'
        redis.call('HSET', turns, q.id .. ' r', text(now + r.wait) .. ' ' .. text(now) .. ' ' .. size)
    elseif mine and not q.more then
        redis.call('HDEL', turns, q.id .. ' r')
    end
elseif q.limit then
    local free = math.max(limit - used - ahead, 0)
    if paced then free = math.min(free, cells()) end
    r.free = free
    if free == 0 then
        local before_me = before('r', mine)
        local after = 0
        if paced then after = tat - now - (q.burst - 1) * q.period + before_me * q.period end
        if used + ahead >= limit then after = math.max(after, wait_for_places(before_me + 1)) end
        r.wait, r.why = math.max(math.ceil(after), 1), paced and 'pace' or 'window'
        if no_place or q.more then redis.call('HSET', turns, q.id .. ' r', text(now + r.wait) .. ' ' .. text(now)) end
    end
end
if mine and not q.block and not (r.wait and (no_place or q.more)) then redis.call('HDEL', turns, q.id .. ' r') end
if no_slot then
    redis.call('HSET', turns, q.id .. ' s', text(promised.slot or now) .. ' ' .. text(now))
    r.no_slot = true
elseif promised.slot and q.asks then
    redis.call('HDEL', turns, q.id .. ' s')
end

-- Slots of replicas that are gone go to one who will look.
if q.adopt then
    local ours = 0
    local flat = redis.call('HGETALL', slots)
    for i = 1, #flat, 2 do
        local entry = cjson.decode(flat[i + 1])
        local owner = all[entry.owner]
        if entry.owner == q.id then
            ours = ours + 1
        elseif #adopted < 4 and (not owner or math.min(now - owner.seen, age - owner.seen_age) > 3 * q.lease) then
            adopt_slot(flat[i], entry)
        end
    end
    if ours - new_slots ~= q.adopt then r.odd = true end
    -- Enough to tell of the others should everything be lost.
    local holds, others = {}, {}
    local flat = redis.call('HGETALL', slots)
    for i = 1, #flat, 2 do holds[cjson.decode(flat[i + 1]).owner] = true end
    for id, m in pairs(all) do
        if id ~= q.id then others[id] = (holds[id] or not missing(m)) and '?' or '-' end
    end
    if next(others) then r.others = others end
    -- And of what they have taken: final where they cannot take more.
    local taken = {}
    for id, row in pairs(rows) do
        if id ~= q.id and row.day >= day then
            taken[id] = { row.day, text(row.amount), row.mark ~= '?' and (not all[id] or missing(all[id])) }
        end
    end
    if q.purse and next(taken) then r.purse.others = taken end
end
if q.purse then
    r.purse.used, r.purse.of = text(spent), math.max(rows[q.id].day, day)
    keep_purse()
end
if #adopted > 0 then r.adopted = adopted end
r.members, r.away = count, away
r.used, r.live = used, redis.call('HLEN', slots)
if a.paced == '1' then r.paced = true end
return finish()
