#!/bin/sh
# Has this machine's Ollama pull every model of a roster.  What is there already is left alone (or, with --update, compared
# with the registry); a pull that was cut goes on where it stopped, since Ollama keeps what has come.
#
# It runs on the target, a Mac or Linux, and needs curl alone: it speaks Ollama's HTTP API and not the `ollama` command, which a
# Mac does not find over ssh.  The room on the disk is judged when Ollama tells how much is missing of a file, before it comes.
set -eu
LC_ALL=C
export LC_ALL

KEPT_FREE=5000000 # kilobytes that stay free on the models' disk
TRIES=5           # of one model, before the next one's turn

usage() {
    cat <<'END'
usage: pull-models.sh [--update] [ROSTER]

  --update  ask the registry also about models that are there
  ROSTER    a file with one model a line, # for comments; without it models.txt beside this script

OLLAMA_HOST    where Ollama listens, as for the ollama command
OLLAMA_MODELS  where Ollama keeps its models, if that is not its usual place

Exits with 0 when all are there, 1 when some are not, 2 when nothing was tried.
END
}

refuse() {
    printf 'pull-models: %s\n' "$1" >&2
    exit 2
}

# The models of a roster, one a line; or, and then it fails, what is wrong with it.
read_roster() {
    awk '
        { sub(/\r$/, ""); sub(/#.*/, "") }
        NF == 0 { next }
        # host/namespace/model:tag, of which all but the model may be missing
        NF > 1 || $1 !~ /^(([A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]+)?\/)?[A-Za-z0-9_][A-Za-z0-9_-]*\/)?[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$/ {
            gsub(/[^ -~]/, "?")
            wrong = wrong "pull-models: line " NR " is no model: " $0 "\n"
            next
        }
        { models = models $1 "\n" }
        END {
            printf "%s", (wrong ? wrong : models)
            exit (wrong != "")
        }' "$1"
}

# Where to ask, from OLLAMA_HOST; "every interface" is asked on loopback.
url() {
    host=${OLLAMA_HOST:-127.0.0.1} scheme=http port=11434
    case $host in
    http://*) host=${host#*://} port=80 ;;
    https://*) host=${host#*://} port=443 scheme=https ;;
    esac
    host=${host%%/*}
    case $host in
    \[*\]) ;;
    \[*\]:*) port=${host##*:} host=${host%:*} ;;
    *:*:*) host="[$host]" ;;
    *:*) port=${host##*:} host=${host%:*} ;;
    esac
    case $host in
    '' | 0.0.0.0) host=127.0.0.1 ;;
    '[::]') host='[::1]' ;;
    esac
    printf '%s://%s:%s\n' "$scheme" "$host" "$port"
}

# The folder of Ollama's models, or as much of its path as there is and may be seen.
models_folder() {
    folder=${HOME:-/}/.ollama/models
    [ ! -d /usr/share/ollama ] || folder=/usr/share/ollama/.ollama/models # Ollama's installer for Linux
    folder=${OLLAMA_MODELS:-$folder}
    until df -Pk "$folder" >/dev/null 2>&1; do
        case $folder in
        / | .) refuse "df does not tell how much room there is" ;;
        esac
        folder=$(dirname "$folder")
    done
    printf '%s\n' "$folder"
}

# Kilobytes free there.  The column before the per cents: names of file systems may have blanks.
free() {
    df -Pk "$FOLDER" | awk 'NR > 1 { for (i = 2; i <= NF; i++) if ($i ~ /%$/) { print $(i - 1); exit } }'
}

# Whether so many bytes find room; a line if not.
has_room() {
    free=$(free)
    [ "$((free - $1 / 1024))" -lt "$KEPT_FREE" ] || return 0
    end_line
    printf '  no room: %s MB are to come, %s MB are free at %s, of which %s MB stay free\n' \
        "$(($1 / 1000000))" "$((free / 1000))" "$FOLDER" "$((KEPT_FREE / 1000))"
    return 1
}

ask() {
    # --globoff for IPv6 addresses; a proxy is for the registry, and Ollama's business.
    curl --silent --globoff --noproxy '*' --connect-timeout 5 "$@"
}

# On a terminal progress stays on one line.
if [ -t 1 ]; then
    progress() { printf '\r\033[K  %s' "$1"; }
    end_line() { printf '\n'; }
    STEP=1
else
    progress() { printf '  %s\n' "$1"; }
    end_line() { :; }
    STEP=10
fi

# Reads the answer to a pull to its end and shows it.  0: the model is there; 1: worth another try; 2: not.
follow() {
    file='' shown=''
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
        '{"error":'*)
            text=${line#*'"error":"'}
            end_line
            printf '  Ollama says: %s\n' "${text%\"*}"
            case $text in
            # The registry does not have it or does not give it; foreman or Ollama refuses; the disk is full.
            *'does not exist'* | *'manifest: 4'[0-9][0-9]:* | *'invalid model name'* | *FOREMAN_* | *'no space left'* | *'requires MLX'*) return 2 ;;
            *) return 1 ;;
            esac
            ;;
        *'"status":"success"'*)
            progress "is there"
            end_line
            return 0
            ;;
        *'"total":'*)
            digest=${line#*'"digest":"'} digest=${digest%%\"*}
            total=${line#*'"total":'} total=${total%%[!0-9]*}
            came=0
            case $line in
            *'"completed":'*) came=${line#*'"completed":'} came=${came%%[!0-9]*} ;;
            esac
            if [ "$digest" != "$file" ]; then
                file=$digest shown=''
                has_room "$((total - came))" || return 2
            fi
            percent=$((total > 0 ? came * 100 / total : 100))
            if [ "$((percent / STEP))" != "$shown" ]; then
                shown=$((percent / STEP))
                progress "$percent % of $((total / 1000000)) MB"
            fi
            ;;
        *'"status":'*)
            text=${line#*'"status":"'}
            progress "${text%%\"*}"
            ;;
        esac
    done
    end_line
    printf '  the answer broke off\n'
    return 1
}

# Pulls one model, with a few tries.
pull() {
    try=1
    while :; do
        printf '%s\n' "$1: pulling"
        has_room 0 || return 1
        outcome=0
        ask --no-buffer --data "{\"model\": \"$1\"}" "$URL/api/pull" | follow || outcome=$?
        case $outcome in
        0) return 0 ;;
        1) [ "$try" -lt "$TRIES" ] || return 1 ;;
        *) return 1 ;;
        esac
        printf '  what has come is kept; try %s of %s in %s s\n' "$((try + 1))" "$TRIES" "$((try * 5))"
        sleep "$((try * 5))"
        try=$((try + 1))
    done
}

update=false
while [ $# -gt 0 ]; do
    case $1 in
    --update) update=true ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*) refuse "there is no option $1; see --help" ;;
    *) break ;;
    esac
    shift
done
[ $# -le 1 ] || refuse "one roster at a time"
roster=${1:-$(dirname "$0")/models.txt}
command -v curl >/dev/null || refuse "needs curl"
{ [ -f "$roster" ] && [ -r "$roster" ]; } || refuse "cannot read the roster $roster"
models=$(read_roster "$roster") || {
    printf '%s\n' "$models" >&2
    exit 2
}
[ -n "$models" ] || refuse "$roster names no model"
URL=$(url)
ask --fail --max-time 10 --output /dev/null "$URL/api/version" ||
    refuse "no Ollama answers at $URL; has it been started, and does it listen there (OLLAMA_HOST)?"
FOLDER=$(models_folder)

trap 'printf "\nstopped; what has come is kept, and the next run goes on there\n"; exit 130' INT
failed=''
for model in $models; do
    there=$(ask --max-time 60 --output /dev/null --write-out '%{http_code}' --data "{\"model\": \"$model\"}" "$URL/api/show") || there=000
    if [ "$there" = 200 ] && [ "$update" = false ]; then
        printf '%s\n' "$model: is there"
    else
        pull "$model" || failed="$failed $model"
    fi
done
if [ -n "$failed" ]; then
    printf 'pull-models: not there:%s\n' "$failed" >&2
    exit 1
fi
